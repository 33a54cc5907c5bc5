"""The commands of ``python -m mtl_jax``."""
