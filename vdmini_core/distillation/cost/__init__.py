"""What a recovery costs before it is started: memory per worker, operations, time, money."""
