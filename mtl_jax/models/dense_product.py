"""Matrix products with backward passes of their own, of half-precision factors and of others."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from mtl_jax.models.dropout import dropped
from mtl_jax.models.parameter import parameter


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(spec: str, dtype: DTypeLike, left: jax.Array, right: jax.Array) -> jax.Array:
    """``jnp.einsum`` of two factors rounded to ``dtype``, with sums and result in float32.

    A factor's gradient is a product of the same kind, of the rounded cotangent and the other
    factor, and has the factor's own type. JAX's own gradient would multiply a float32 array by a
    half-precision one, which matrix units do not do.

    Args:
        spec: Two factors and the result; each index is in two of the three.
        dtype: What the factors are rounded to.
        left: Of any float type.
        right: Of any float type.
    """
    return _float32(spec, left.astype(dtype), right.astype(dtype))


def _float32(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    def widened(left: jax.Array, right: jax.Array) -> jax.Array:
        # XLA's CPU backend can't give every half-precision product in float32.
        return jnp.einsum(spec, left.astype(jnp.float32), right.astype(jnp.float32))

    summed = functools.partial(jnp.einsum, spec, preferred_element_type=jnp.float32)
    return lax.platform_dependent(left, right, cpu=widened, default=summed)


def _forward(spec: str, dtype: DTypeLike, left: Any, right: Any) -> tuple[jax.Array, Any]:
    factors = left.value.astype(dtype), right.value.astype(dtype)
    return _float32(spec, *factors), (_kept(left, factors[1]), _kept(right, factors[0]))


def _kept(factor: Any, other: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """What a factor's gradient is made of, and its type; None of a frozen factor.

    Of the type an empty array is kept: a type by itself can't be.
    """
    return (other, jnp.zeros(0, factor.value.dtype)) if factor.perturbed else None


def _backward(spec: str, dtype: DTypeLike, kept: Any, gradient: Any) -> tuple[Any, Any]:
    if isinstance(gradient, SymbolicZero):
        return None, None
    factors, result = spec.split("->")
    left, right = factors.split(",")
    specs = f"{result},{right}->{left}", f"{result},{left}->{right}"
    rounded = gradient.astype(dtype)
    of_left, of_right = (
        each and _float32(spec, rounded, each[0]).astype(each[1].dtype)
        for spec, each in zip(specs, kept, strict=True)
    )
    return of_left, of_right


product.defvjp(_forward, _backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def kernel_product(
    dtype: DTypeLike, precision: lax.Precision | None, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """[..., any] by [any, features], both rounded to ``dtype``: float32 [..., features].

    Gradients are products of the same kind, as those of ``product`` are. The kernel's gradient is
    written as one product over all tokens, because for JAX's own gradient XLA first copies the
    cotangent, transposed, on a CPU. In float32 that copy takes a quarter of the product's time.

    Args:
        dtype: What the factors are rounded to.
        precision: Of a float32 product; see ``jax.lax.Precision``.
        x: Of any float type.
        kernel: Of any float type.
    """
    return _dot(x.astype(dtype), kernel.astype(dtype), (x.ndim - 1, 0), precision)


def _dot(
    left: jax.Array, right: jax.Array, over: tuple[int, int], precision: lax.Precision | None
) -> jax.Array:
    dimensions = ((over[0],), (over[1],)), ((), ())
    return lax.dot_general(left, right, dimensions, precision, jnp.float32)


def _over_tokens(x: jax.Array, of_tokens: jax.Array, precision: lax.Precision | None) -> jax.Array:
    """[tokens, any] and [tokens, features]: float32 [any, features]."""

    def copied(x: jax.Array, of_tokens: jax.Array) -> jax.Array:
        # A processor's half-precision units take a factor only if what it is summed over lies in
        # one piece. Through a single dimension, XLA can't undo the transposition.
        flat = lax.optimization_barrier(x.T.reshape(-1))
        return _dot(flat.reshape(x.shape[::-1]), of_tokens, (1, 0), precision)

    def direct(x: jax.Array, of_tokens: jax.Array) -> jax.Array:
        return _dot(x, of_tokens, (0, 0), precision)

    if x.dtype == jnp.float32:
        return direct(x, of_tokens)
    found: jax.Array = lax.platform_dependent(x, of_tokens, cpu=copied, default=direct)
    return found


def _kernel_forward(
    dtype: DTypeLike, precision: lax.Precision | None, x: Any, kernel: Any
) -> tuple[jax.Array, Any]:
    left, right = x.value.astype(dtype), kernel.value.astype(dtype)
    kept = _kept(x, right), _kept(kernel, left)
    return kernel_product(dtype, precision, left, right), kept


def _kernel_backward(
    dtype: DTypeLike, precision: lax.Precision | None, kept: Any, gradient: Any
) -> tuple[jax.Array | None, jax.Array | None]:
    if isinstance(gradient, SymbolicZero):
        return None, None
    for_x, for_kernel = kept
    rounded = gradient.astype(dtype)
    of_x = of_kernel = None
    if for_x is not None:
        kernel, like = for_x
        of_x = _dot(rounded, kernel, (rounded.ndim - 1, 1), precision).astype(like.dtype)
    if for_kernel is not None:
        tokens, of_tokens = (
            whole.reshape(-1, whole.shape[-1]) for whole in (for_kernel[0], rounded)
        )
        of_kernel = _over_tokens(tokens, of_tokens, precision).astype(for_kernel[1].dtype)
    return of_x, of_kernel


kernel_product.defvjp(_kernel_forward, _kernel_backward, symbolic_zeros=True)


class Dense(nn.Module):
    """``flax.linen.Dense`` with the same parameters, and a float32 result.

    In float32 it computes the same. In half precision the factors of the product are rounded, and
    the bias is not: its gradient is a sum over all tokens.

    Where the tree has ``lora_a`` and ``lora_b`` beside the kernel, their product is added to it
    without being formed: see ``freezing.lora``.

    Attributes:
        features: Size of the result.
        dtype: What the input and the kernel are rounded to.
        kernel_init: Initialises the kernel; the bias begins at 0.
        precision: Of a float32 product; see ``jax.lax.Precision``.
        use_bias: Whether there is a bias.
    """

    features: int
    dtype: DTypeLike
    kernel_init: nn.initializers.Initializer
    precision: lax.Precision | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., any] -> float32 [..., features]."""
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        y = self._times(x, kernel)
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
            y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
        return y + self._low_rank(x) if self.has_variable("params", "lora_a") else y

    def _times(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """[..., any] by [any, features], float32 [..., features]."""
        result: Any = kernel_product(self.dtype, self.precision, x, kernel)
        return result

    def _low_rank(self, x: jax.Array) -> jax.Array:
        """What the factors add; their dropout is on where the module has a key for it."""

        def leaf(name: str) -> Any:
            return self.get_variable("params", name)

        if self.has_variable("params", "lora_dropout") and self.has_rng("dropout"):
            x = dropped(x, self.make_rng("dropout"), leaf("lora_dropout"))
        inner = self._times(x, leaf("lora_a"))
        if self.has_variable("params", "lora_scale"):
            inner = inner * leaf("lora_scale")
        return self._times(inner, leaf("lora_b"))
