"""Daemons of a command on this machine, forked off one process that has read torch and the roles once."""
