"""Layer normalisation beside Flax's, whose backward pass is JAX's own."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mtl_jax.models import layer_norm
from mtl_jax.models.layer_norm import LayerNorm

OURS = LayerNorm(1e-6)
THEIRS = nn.LayerNorm(1e-6, dtype=jnp.float32, use_fast_variance=False)


def problem(shape, dtype=jnp.float32):
    draw = np.random.default_rng(0)
    x, gradient = (draw.standard_normal(shape, np.float32) for _ in range(2))
    scale, bias = (draw.standard_normal(shape[-1:], np.float32) + 1 for _ in range(2))
    params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
    return params, jnp.asarray(3 * x + 5, dtype), jnp.asarray(gradient)


def passes(module, params, x, gradient) -> Any:
    @jax.jit
    def both(params, x, gradient):
        value, back = jax.vjp(lambda params, x: module.apply({"params": params}, x), params, x)
        return value, back(gradient)

    return both(params, x, gradient)


def assert_close(ours, theirs, tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sums", [layer_norm._sums_on_a_cpu, layer_norm._sums])
@pytest.mark.parametrize("shape", [(1, 40, 24), (3, 5, 7), (6, 12)])
def test_both_passes_are_flax_s(shape, sums, monkeypatch):
    """With the sums as on a CPU, and as elsewhere."""
    monkeypatch.setattr(layer_norm, "_sums_on_a_cpu", sums)
    given = problem(shape)
    _, gradients = passes(OURS, *given)
    _, their_gradients = passes(THEIRS, *given)
    # One operation after the other: a compiler might round one of two programs otherwise.
    params, x, _ = given
    modules: tuple[Any, ...] = (OURS, THEIRS)
    value, their_value = (np.asarray(module.apply({"params": params}, x)) for module in modules)
    np.testing.assert_array_equal(value, their_value)
    assert_close(gradients, their_gradients, 1e-5)


def test_a_gradient_is_the_slope():
    params, x, _ = problem((2, 3, 8))
    function = lambda params, x: OURS.apply({"params": params}, x)  # noqa: E731
    check_grads(function, (params, x), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_half_precision_is_normalised_in_float32():
    given = problem((2, 9, 16), jnp.bfloat16)
    ours, theirs = passes(OURS, *given), passes(THEIRS, *given)
    assert (ours[0].dtype, ours[1][1].dtype) == (jnp.float32, jnp.bfloat16)
    assert_close(ours, theirs, 1e-2)


def test_a_row_of_one_value_is_the_bias():
    params, x, gradient = problem((2, 6))
    value, gradients = passes(OURS, params, jnp.full_like(x, 7), gradient)
    np.testing.assert_array_equal(value, np.broadcast_to(params["bias"], x.shape))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_many_at_once_are_each_alone():
    """As the seeds of a run are, each with parameters of its own."""
    params, x, gradient = problem((4, 3, 5, 8))
    several = jax.tree.map(lambda leaf: jnp.arange(1.0, 5)[:, None] * leaf, params)
    together = jax.vmap(lambda *of: passes(OURS, *of))(several, x, gradient)
    for i in range(4):
        of_one = jax.tree.map(lambda leaf, i=i: leaf[i], (several, x, gradient))
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), passes(OURS, *of_one), 1e-5)


def test_parameters_are_named_and_begin_as_flax_s():
    x = jnp.ones((2, 4))
    ours, theirs = (module.init(jax.random.key(0), x) for module in (OURS, THEIRS))
    assert_close(ours, theirs, 0)
