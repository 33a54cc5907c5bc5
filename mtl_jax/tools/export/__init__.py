"""A finished run as a folder of another framework."""
