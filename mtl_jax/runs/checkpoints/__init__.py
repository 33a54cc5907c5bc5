"""A run's checkpoints: written, held against their manifest, read."""
