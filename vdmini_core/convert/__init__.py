"""Original checkpoints of other projects -> pipeline directories."""
