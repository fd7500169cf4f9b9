"""Other products that do the same, each with its own environment (`make peers`) and the same two paths."""
