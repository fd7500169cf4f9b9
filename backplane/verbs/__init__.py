"""What `Backplane` has for all workers together, one class for each kind of verbs."""
