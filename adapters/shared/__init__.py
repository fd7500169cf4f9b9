"""What several adapters need: credentials, TLS settings, races for a connection, sockets that a child must close."""
