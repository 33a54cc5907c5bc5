"""What is told of a run under way: metrics, progress, profiles."""
