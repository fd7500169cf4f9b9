"""Which users are in a channel, across all workers: the protocol of it, without I/O and without a clock."""
