"""Attention in one kernel, of one training and of several at once.

``jax.nn.dot_product_attention`` is the kernel. Under ``vmap`` that of cuDNN gets a mask for every
head, as large as the scores that it is there to avoid, and fails where heads share one. So several
trainings at once join their batches before they come to it: a text's attention is the same
whichever other texts are beside it.

JAX gives cuDNN's kernel no dropout of the weights that could be used: the seed of its masks is a
constant of the program, so that every step would drop the same weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike

from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.precision import is_ampere

Fused = Literal["xla", "cudnn", "xla_of_seeds", "cudnn_of_seeds"]
"""The kernel's implementation, and whether trainings that are mapped over join their batches."""

_OF_SEEDS = "_of_seeds"


# What cuDNN's attention takes on every card that has it, which those from Ampere on are.
_CUDNN_HEAD_MULTIPLE, _CUDNN_HEAD_MOST = 8, 128


def cudnn_can(config: EncoderConfig, dtype: DTypeLike, device: Any = None) -> bool:
    """Whether cuDNN's attention can compute that of an encoder.

    Args:
        config: The encoder's.
        dtype: Precision of the computation; cuDNN has no float32.
        device: A JAX device; by default the first of this process.
    """
    device = jax.local_devices()[0] if device is None else device
    head = config.hidden_size // config.num_attention_heads
    return (
        jnp.dtype(dtype) == jnp.bfloat16
        # It adds to the scores only what has no gradient of its own.
        and not config.relative_attention_num_buckets
        and config.position_buckets is None
        and head % _CUDNN_HEAD_MULTIPLE == 0
        and head <= _CUDNN_HEAD_MOST
        and is_ampere(device)
    )


def of_seeds(fused: Fused | None) -> Fused | None:
    """The same implementation for trainings that ``vmap`` maps over."""
    return {
        None: None,
        "xla": "xla_of_seeds",
        "cudnn": "cudnn_of_seeds",
        "xla_of_seeds": "xla_of_seeds",
        "cudnn_of_seeds": "cudnn_of_seeds",
    }[fused]


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, fused: Fused
) -> jax.Array:
    """[blocks, length, heads, head size] x 3 -> the same, mixed by attention.

    Args:
        query: Of each token.
        key: Likewise.
        value: Likewise.
        mask: bool [blocks, 1, length, length], of each query the keys that it may look at.
        fused: By which implementation.
    """
    implementation = fused.removesuffix(_OF_SEEDS)
    if implementation == fused:
        return _kernel(implementation, query, key, value, mask)
    return _joined_kernel(implementation)(query, key, value, mask)


def _kernel(
    implementation: Any, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)


@functools.cache
def _joined_kernel(implementation: str) -> Callable[..., jax.Array]:
    kernel = functools.partial(_kernel, implementation)

    def pulled_back(
        query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, gradient: jax.Array
    ) -> tuple[jax.Array, ...]:
        # The kernel runs again: what it keeps for this has no common first axis to join.
        def of(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            return kernel(query, key, value, mask)

        of_inputs = jax.vjp(of, query, key, value)[1]
        return of_inputs(gradient)

    forward, backward = _joining(kernel), _joining(pulled_back)

    @jax.custom_vjp
    def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        return forward(query, key, value, mask)

    # What is mapped over can't be differentiated, so that each way is mapped by itself.
    attend.defvjp(
        lambda *inputs: (forward(*inputs), inputs),
        lambda inputs, gradient: (*backward(*inputs, gradient), None),
    )
    return attend


def _joining(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays of one first axis, which an axis that is mapped over joins."""
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def joined(size: int, in_batched: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        whole = [
            array if batched else jnp.broadcast_to(array, (size, *array.shape))
            for array, batched in zip(arrays, in_batched, strict=True)
        ]
        found = mapped(*(array.reshape(-1, *array.shape[2:]) for array in whole))
        parted = jax.tree.map(lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]), found)
        return parted, jax.tree.map(lambda _: True, parted)

    return mapped
