"""ZooKeeper: ephemeral sequential nodes."""
