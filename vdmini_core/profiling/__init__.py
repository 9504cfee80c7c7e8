"""profiling of the core."""
