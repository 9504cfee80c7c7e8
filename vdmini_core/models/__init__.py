"""models of the core."""
