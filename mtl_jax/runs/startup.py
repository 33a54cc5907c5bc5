"""What a process of our own does before its first array."""

from __future__ import annotations

from mtl_jax.core import runtime


def prepare() -> None:
    """What a command does before its first array; for processes of our own only."""
    runtime.collect_less_often()
    import_transformers_alone()
    runtime.keep_freed_memory()
    runtime.keep_compiled()


def import_transformers_alone() -> None:
    """Imports transformers before it can import PyTorch or TensorFlow.

    For processes of our own only: afterwards it takes them for absent.
    """
    # Here, so that --help does not wait for NumPy.
    from mtl_jax.models.quiet_transformers import tokenizer_class

    with runtime.without("torch", "tensorflow"):
        tokenizer_class()
