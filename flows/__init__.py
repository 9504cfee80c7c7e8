"""The story: order, retries, schedules, gates, and the command line."""
