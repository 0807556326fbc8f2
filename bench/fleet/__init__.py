"""Leaders, partitions and a sale under kills, with members as processes: ``python -m bench.fleet``.

`member` is such a process: it does as it is told, and writes a `journal` of what it owns from when on and until when.
`crew` starts, tells, kills and pauses members, and `history` reads their journals. What is asked of them: `elections`,
`sharing`, `sale`, `storm`. `peers` are members by kazoo and tooz.
"""
