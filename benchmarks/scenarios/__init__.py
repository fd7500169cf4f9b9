"""The scenarios, each a function from a running server and options to one `Run`."""
