"""Flow C: a record through the DHT.

The files stand in the order in which a record meets them. Pure ones first: `keys` (where it belongs), `records` (what
it says), `calls` (what nodes ask each other), `messages` (all of that as bytes), `signing` (who says it), `store` (who
keeps it, and for how long), `view` (what all of them together say). Then the shell: `known` (peers on disk), `protocol`
(Kademlia's calls over our transport), `crawl` (who is near a key), `publisher` (own records, kept alive), `bootstrap`
(into the swarm), `service` (the side that answers), `node` (the one owner of these), and `directory`: who serves what
now, the only thing that roles see.
"""
