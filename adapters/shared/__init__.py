"""What several adapters need: credentials, TLS settings, sockets that a forked child must not keep."""
