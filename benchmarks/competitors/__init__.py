"""Other products that do the same, each with its own environment (`make competitors`) and the same two paths."""
