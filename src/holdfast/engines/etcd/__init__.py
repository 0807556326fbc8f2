"""etcd: keys on leases, over gRPC."""
