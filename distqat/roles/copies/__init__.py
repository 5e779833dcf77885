"""Copies of a stage's local state, from its seat to a spare: what no round has committed yet.

copy      what a copy is, and whether it fits a stage
messages  copies as frames and back
giving    the side that answers
taking    the side that asks
"""
