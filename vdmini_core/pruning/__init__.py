"""pruning of the core."""
