"""The settings of a run, as dataclasses; nothing here needs JAX."""
