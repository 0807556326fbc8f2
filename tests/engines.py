"""The engines that are tested alike. A fixture ``NAME_url`` gives an empty one of each, but for memory."""

ENGINES = (
    "memory",
    "sqlite",
    "redis",
    "sentinel",
    "cluster",
    "zookeeper",
    "etcd",
)
SHARED = tuple(engine for engine in ENGINES if engine != "memory")
"""What several processes can share."""
ON_SESSIONS = ("zookeeper",)
"""Where a claim has no length of its own: it stands until it is left or its client's session is over."""
