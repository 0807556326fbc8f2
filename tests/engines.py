"""The engines that are tested alike. A fixture ``NAME_url`` gives an empty one of each, but for memory."""

ENGINES = (
    "memory",
    "sqlite",
    "redis",
    "sentinel",
    "cluster",
    "zookeeper",
    "etcd",
    "etcd_three",
    "postgres",
    "pgbouncer",
    "quorum",
)
SHARED = tuple(engine for engine in ENGINES if engine != "memory")
"""What several processes can share."""
ON_SESSIONS = ("zookeeper",)
"""Where a claim has no length of its own: it stands until it is left or its client's session is over."""
ASKING = ("zookeeper", "etcd", "etcd_three")
"""Where a claim may hear only from its first renewal on that it is wanted: to know at once would cost a request."""
EXCLUSIVE = ("quorum",)
"""Where there are only locks of one holder, and who waits is in no queue: neither weights nor groups, and not fair."""
