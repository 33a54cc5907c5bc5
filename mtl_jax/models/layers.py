"""The layers of BERT (Devlin et al. 2018, arXiv:1810.04805) in Flax.

Whatever ``dtype`` is, only the factors of matrix products are rounded to it, and what is kept
between them. Sums, the residual stream, layer normalisation, the softmax and the activations are
float32, as under PyTorch's autocast: a sum of many numbers in bfloat16 stops growing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mtl_jax.models.dense_product import Dense, product
from mtl_jax.models.dropout import Dropout
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.layer_norm import LayerNorm


def _gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Φ(x) (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    As in PyTorch through erf. JAX's own goes through erfc, exact to the last digit far below
    0, where x times it is nothing beside what it is added to, for twice the time.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


# The names of transformers' ACT2FN; its "gelu" is the exact one.
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}

Fused = Literal["xla", "cudnn"]

# What cuDNN's attention takes on every card that has it.
_CUDNN_CAPABILITY = 8.0
_CUDNN_HEAD_MULTIPLE, _CUDNN_HEAD_MOST = 8, 128

Blocks = tuple[tuple[int, int], ...]
"""How a row of tokens is cut for attention, from its start: ``(count, length)`` of blocks."""

Bias = tuple[jax.Array, ...]
"""What is added to the attention scores, for each kind of block: float32 [batch * count, 1,
1 or length, length]. A token sees only its own block."""


def cudnn_can(config: EncoderConfig, dtype: DTypeLike, device: Any = None) -> bool:
    """Whether cuDNN's attention can compute that of a BERT.

    Args:
        config: The BERT.
        dtype: Precision of the computation; cuDNN has no float32.
        device: A JAX device; by default the first of this process.
    """
    device = jax.local_devices()[0] if device is None else device
    head = config.hidden_size // config.num_attention_heads
    return (
        jnp.dtype(dtype) == jnp.bfloat16
        and head % _CUDNN_HEAD_MULTIPLE == 0
        and head <= _CUDNN_HEAD_MOST
        # The cards of ROCm are a "gpu", too.
        and "cuda" in device.client.platform_version
        and float(device.compute_capability) >= _CUDNN_CAPABILITY
    )


def dense(config: EncoderConfig, features: int, dtype: DTypeLike) -> Dense:
    """A Dense layer with BERT's initialisation."""
    return Dense(features, dtype, nn.initializers.normal(config.initializer_range))


def exact_dense(config: EncoderConfig, features: int, **module: Any) -> Dense:
    """The same in float32 on every device: next to the encoder's, its cost is nothing.

    By default GPUs and TPUs round the factors of a float32 product to fewer bits.
    ``module`` is what Flax takes of any module, such as its ``parent``.
    """
    init = nn.initializers.normal(config.initializer_range)
    return Dense(features, jnp.float32, init, jax.lax.Precision.HIGHEST, **module)


def attention_bias(
    attention_mask: jax.Array,
    segment_ids: jax.Array | None = None,
    blocks: Blocks | None = None,
) -> Bias:
    """0 where a token may look, else very negative.

    Args:
        attention_mask: [batch, length], nonzero at tokens that may be looked at.
        segment_ids: int32 [batch, length], in the place of the mask for rows that hold
            several texts: a token looks at its own segment only; segment 0 is padding.
        blocks: Parts of a row that no segment crosses, together ``length`` long; by default
            one, the whole row.
    """
    rows, row_length = attention_mask.shape
    bias, start = [], 0
    for count, length in blocks or ((1, row_length),):
        stop = start + count * length
        shape = (rows * count, length)
        if segment_ids is not None:
            segments = segment_ids[:, start:stop].reshape(shape)
            visible = segments[:, :, None] == segments[:, None, :]
        else:
            visible = attention_mask[:, start:stop].reshape(shape)[:, None, :] != 0
        bias.append(jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min)[:, None])
        start = stop
    return tuple(bias)


class Embeddings(nn.Module):
    """The sum of word, position and token-type embeddings, normalised."""

    config: EncoderConfig

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        # Looked up in float32 whatever the precision: a row's gradient is a sum over all its
        # tokens, and of bfloat16 numbers the sum is 84 % off at 16,384 tokens.
        embed = functools.partial(nn.Embed, features=config.hidden_size, embedding_init=init)
        self.word = embed(config.vocab_size)
        self.position = embed(config.max_position_embeddings)
        self.token_type = embed(config.type_vocab_size)
        self.layer_norm = LayerNorm(config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """int32 [batch, length] x 3 -> float32 [batch, length, hidden]."""
        summed = (
            self.word(input_ids) + self.token_type(token_type_ids) + self.position(position_ids)
        )
        return self.dropout(self.layer_norm(summed), deterministic=deterministic)


class Attention(nn.Module):
    """Multi-head self-attention with its residual connection and layer norm."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    fused: Fused | None = None

    def setup(self) -> None:
        config = self.config
        self.query = dense(config, config.hidden_size, self.dtype)
        self.key = dense(config, config.hidden_size, self.dtype)
        self.value = dense(config, config.hidden_size, self.dtype)
        self.output = dense(config, config.hidden_size, self.dtype)
        self.layer_norm = LayerNorm(config.layer_norm_eps)
        self.weights_dropout = Dropout(config.attention_probs_dropout_prob)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(self, hidden: jax.Array, bias: Bias, deterministic: bool) -> jax.Array:
        """float32 [batch, length, hidden] -> the same; ``bias`` is of ``attention_bias``."""
        query, key, value = (
            project(hidden).astype(self.dtype) for project in (self.query, self.key, self.value)
        )
        mixed, start = [], 0
        for of_kind in bias:
            blocks, length = of_kind.shape[0], of_kind.shape[-1]
            stop = start + blocks // len(hidden) * length
            parts = (
                whole[:, start:stop].reshape(blocks, length, self.config.num_attention_heads, -1)
                for whole in (query, key, value)
            )
            mixed.append(
                self._mix(*parts, of_kind, deterministic).reshape(len(hidden), -1, hidden.shape[-1])
            )
            start = stop
        update = self.output(jnp.concatenate(mixed, axis=1))
        update = self.dropout(update, deterministic=deterministic)
        return self.layer_norm(hidden + update)

    def _mix(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        bias: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """[blocks, length, heads, head size] x 3 -> the same, mixed by attention."""
        # jax.nn's attention has no dropout of its weights.
        if self.fused and (deterministic or self.config.attention_probs_dropout_prob == 0):
            # cuDNN takes no mask that is the same for all queries and left to be broadcast.
            mask = jnp.broadcast_to(bias == 0, (*bias.shape[:2], query.shape[1], key.shape[1]))
            return jax.nn.dot_product_attention(
                query, key, value, mask=mask, implementation=self.fused
            )
        scale = query.shape[-1] ** -0.5
        if self.dtype == jnp.float32:
            scores = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key)
        else:
            # Scaled afterwards, so that no query is rounded twice.
            scores = product("bqhd,bkhd->bhqk", self.dtype, query, key) * scale
        weights = jax.nn.softmax(scores + bias)
        weights = self.weights_dropout(weights, deterministic=deterministic)
        if self.dtype == jnp.float32:
            return jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        mixed: Any = product("bhqk,bkhd->bqhd", self.dtype, weights, value)
        return mixed.astype(self.dtype)


class FeedForward(nn.Module):
    """The position-wise network with its residual connection and layer norm."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.intermediate = dense(config, config.intermediate_size, self.dtype)
        self.output = dense(config, config.hidden_size, self.dtype)
        self.layer_norm = LayerNorm(config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(self, hidden: jax.Array, deterministic: bool) -> jax.Array:
        """float32 [batch, length, hidden] -> the same."""
        update = self.output(self._activated(self.intermediate(hidden)))
        update = self.dropout(update, deterministic=deterministic)
        return self.layer_norm(hidden + update)

    def _activated(self, x: jax.Array) -> jax.Array:
        activation = _ACTIVATIONS[self.config.hidden_act]
        if self.dtype == jnp.float32:
            return activation(x)
        # Computed in float32, of what is kept in half precision for the backward pass.
        return jax.checkpoint(lambda x: activation(x.astype(jnp.float32)))(x.astype(self.dtype))


class Layer(nn.Module):
    """One post-norm transformer layer."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    fused: Fused | None = None

    def setup(self) -> None:
        self.attention = Attention(self.config, self.dtype, self.fused)
        self.mlp = FeedForward(self.config, self.dtype)

    def __call__(self, hidden: jax.Array, bias: Bias, deterministic: bool) -> jax.Array:
        """float32 [batch, length, hidden] -> the same; ``bias`` is of ``attention_bias``."""
        return self.mlp(self.attention(hidden, bias, deterministic), deterministic)
