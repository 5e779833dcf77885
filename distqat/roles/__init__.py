"""Where the three flows meet: what a daemon does in the swarm.

`plan` decides who hosts what (pure); `client` carries it out; `trainer`, `expert` and `monitor` do their part;
`local` is the baseline. `drive` keeps one pipeline of a trainer going, fed by `supply`, in steps as large as
`batches` says. An `expert` begins as a `newcomer` and then holds a `seat`, whose `rounds` say when numbers leave its
stage and come back, `flight` which, and `journal` what people hear of it. `context` is what a role gets from its
daemon, `status` what it says of itself.
"""
