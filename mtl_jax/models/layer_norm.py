"""Layer normalisation (Ba et al. 2016, arXiv:1607.06450) with a backward pass of its own."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax.models.parameter import parameter

Sums = tuple[jax.Array, jax.Array, jax.Array]


class LayerNorm(nn.Module):
    """``flax.linen.LayerNorm`` over the last axis, in float32, with the same parameters.

    The variance is E[(x - E[x])^2]: E[x^2] - E[x]^2, Flax's default, cancels in float32.

    Attributes:
        epsilon: Added to the variance.
        use_bias: Whether there is a bias.
    """

    epsilon: float
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., features] -> float32 [..., features]."""
        features = x.shape[-1:]
        scale = parameter(self, "scale", nn.initializers.ones, features)
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, features)
        else:
            bias = jnp.zeros(features)
        return _normed(self.epsilon, x.astype(jnp.float32), scale, bias)


def _forward(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    centred = x - x.mean(-1, keepdims=True)
    inverse = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    return centred * (inverse * scale) + bias, (centred, inverse, scale)


def _backward(
    epsilon: float, kept: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    centred, inverse, scale = kept
    normed = centred * inverse
    of_scale, mean, mean_with_normed = lax.platform_dependent(
        gradient, normed, scale, cpu=_sums_on_a_cpu, default=_sums
    )
    of_bias = gradient.sum(tuple(range(gradient.ndim - 1)))
    of_x = inverse * (gradient * scale - mean - normed * mean_with_normed)
    return of_x, of_scale, of_bias


def _sums(gradient: jax.Array, normed: jax.Array, scale: jax.Array) -> Sums:
    """The scale's gradient, and what a change of x changes in its mean and its variance."""
    product = gradient * normed

    def mean(of: jax.Array) -> jax.Array:
        return (of * scale).mean(-1, keepdims=True)

    return product.sum(tuple(range(product.ndim - 1))), mean(gradient), mean(product)


def _sums_on_a_cpu(gradient: jax.Array, normed: jax.Array, scale: jax.Array) -> Sums:
    """The same. XLA's sum of a product, when it makes one loop of the two, takes ten times longer.

    So there is one product, by itself, and its sums over features are those of a matrix product.
    """
    product = lax.optimization_barrier(gradient * normed)
    rows, features = math.prod(product.shape[:-1]), product.shape[-1]

    def mean(of: jax.Array) -> jax.Array:
        sums = jnp.matmul(of.reshape(rows, features), scale, precision=lax.Precision.HIGHEST)
        return sums.reshape(*of.shape[:-1], 1) / features

    return product.sum(tuple(range(product.ndim - 1))), mean(gradient), mean(product)


_normed = jax.custom_vjp(lambda *of: _forward(*of)[0], nondiff_argnums=(0,))
_normed.defvjp(_forward, _backward)
