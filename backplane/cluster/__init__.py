"""How the workers of a cluster exchange messages of their own: reserved channels, and one sender and receiver."""
