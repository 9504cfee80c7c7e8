"""distillation of the core."""
