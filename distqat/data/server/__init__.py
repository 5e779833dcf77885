"""The data server: a process beside the run's client that reads, transforms and lays out samples ahead of the trainers.

`process` is that process and `keeper` watches it for the client; `ring` decides what lies where, `blocks` is the shared
memory, `workers` make the samples, `service` hands them out, and `feed` is the trainer's end.
"""
