"""The compared products, each with an environment of its own (`make competitors`) and the same two paths."""
