"""report of the core."""
