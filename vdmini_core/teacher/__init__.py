"""teacher of the core."""
