"""Commands to all workers of a cluster, and what they answer."""
