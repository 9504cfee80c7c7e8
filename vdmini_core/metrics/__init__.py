"""metrics of the core."""
