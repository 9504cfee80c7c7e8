"""data of the core."""
