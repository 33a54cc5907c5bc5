"""A module's parameter, found without a trace of how it would be initialised."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import errors


def parameter(
    module: nn.Module, name: str, initializer: nn.initializers.Initializer, shape: tuple[int, ...]
) -> jax.Array:
    """Returns ``module.param(name, initializer, shape, jnp.float32)``.

    Flax traces the initializer of a parameter that is there, too, each time it is asked for, to
    compare shapes: a quarter of the time that the trace of an encoder's gradient takes. Here the
    shape is known, and is compared as it is.

    Args:
        module: Whose parameter it is, in a method where it may be declared.
        name: What it is called.
        initializer: Makes it where it is not there.
        shape: What it must have.

    Raises:
        flax.errors.ScopeParamShapeError: It has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, initializer, shape, jnp.float32)
    found: jax.Array = module.get_variable("params", name)
    if found.shape != shape:
        path = "/".join(module.path)
        raise errors.ScopeParamShapeError(name, f"/{path}", found.shape, shape)
    return found
