"""Redis and Valkey: one server, behind Sentinel, or a cluster."""
