"""Where this machine's addresses are, as the kernel tells it, and how it is asked to move them.

`rtnetlink` is the codec, `sockets` carry it, `picture` and `watcher` make changes of it. Knows nothing of RDS, of nodes, or of any agent:
nodes follow moves by it without paying for one. Imported where it is used, because the codec takes 80 ms to import.
"""
