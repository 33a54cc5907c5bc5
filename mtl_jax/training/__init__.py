"""The train step and what it is made of: losses, optimizer, weighting, evaluation, cache."""
