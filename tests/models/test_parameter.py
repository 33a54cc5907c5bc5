"""Parameters as Flax gives them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from mtl_jax.models.parameter import parameter


def asked(module, *how):
    return module.param(*how)


class Scaled(nn.Module):
    ask: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, x):
        return x * self.ask(self, "scale", nn.initializers.normal(), x.shape[-1:])


class Outer(nn.Module):
    ask: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, x):
        return Scaled(self.ask, name="inner")(x)


def test_it_is_initialised_found_and_refused_as_flax_does():
    x = jnp.ones((2, 3))
    ours, theirs = Outer(parameter), Outer(asked)
    found, expected = (module.init(jax.random.key(1), x) for module in (ours, theirs))
    np.testing.assert_array_equal(
        found["params"]["inner"]["scale"], expected["params"]["inner"]["scale"]
    )
    np.testing.assert_array_equal(ours.apply(found, x), theirs.apply(found, x))
    for variables, given, kind in (
        (found, jnp.ones((2, 4)), errors.ScopeParamShapeError),
        ({"params": {"inner": {"other": x}}}, x, errors.ScopeParamNotFoundError),
        ({}, x, errors.ScopeCollectionNotFound),
    ):
        said = []
        for module in (ours, theirs):
            with pytest.raises(kind) as told:
                module.apply(variables, given)
            said.append(str(told.value))
        assert said[0] == said[1]


def test_it_is_float32_where_jax_has_64_bits():
    x = jnp.ones((2, 3))
    init: Callable[..., Any] = Outer(parameter).init
    with jax.enable_x64(True):
        found = init(jax.random.key(1), x)["params"]["inner"]["scale"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, init(jax.random.key(1), x)["params"]["inner"]["scale"])
