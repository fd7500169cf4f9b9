"""The private folder in which processes of one user and host find each other, and the Unix sockets in it."""
