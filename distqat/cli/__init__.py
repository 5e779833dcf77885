"""The two commands: `distqatd` (the daemon) and `distqatctl` (asks daemons, and runs whole swarms on this machine)."""
