"""BERT's encoder (Devlin et al. 2018, arXiv:1810.04805) in Flax, runnable from any layer.

The parameter tree is ``embeddings``, ``layer_0`` ... ``layer_{L-1}`` and, where a
checkpoint has one, ``pooler``. Layer normalisation and the softmax are computed in
float32 whatever ``dtype`` is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mtl_jax.config import BertConfig
from mtl_jax.dropout import Dropout

# The names of transformers' ACT2FN; its "gelu" is the exact one, through erf.
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}


Fused = Literal["xla", "cudnn"]


def _dense(config: BertConfig, features: int, dtype: DTypeLike) -> nn.Dense:
    init = nn.initializers.normal(config.initializer_range)
    return nn.Dense(features, dtype=dtype, kernel_init=init)


def _layer_norm(config: BertConfig) -> nn.LayerNorm:
    # E[x^2] - E[x]^2, Flax's default, cancels in float32; PyTorch computes E[(x - E[x])^2].
    return nn.LayerNorm(config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False)


class Embeddings(nn.Module):
    """The sum of word, position and token-type embeddings, normalised."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        embed = functools.partial(
            nn.Embed, features=config.hidden_size, dtype=self.dtype, embedding_init=init
        )
        self.word = embed(config.vocab_size)
        self.position = embed(config.max_position_embeddings)
        self.token_type = embed(config.type_vocab_size)
        self.layer_norm = _layer_norm(config)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """int32 [batch, length] x 3 -> [batch, length, hidden]."""
        summed = (
            self.word(input_ids) + self.token_type(token_type_ids) + self.position(position_ids)
        )
        return self.dropout(self.layer_norm(summed).astype(self.dtype), deterministic=deterministic)


class Attention(nn.Module):
    """Multi-head self-attention with its residual connection and layer norm."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    fused: Fused | None = None

    def setup(self) -> None:
        config = self.config
        self.query = _dense(config, config.hidden_size, self.dtype)
        self.key = _dense(config, config.hidden_size, self.dtype)
        self.value = _dense(config, config.hidden_size, self.dtype)
        self.output = _dense(config, config.hidden_size, self.dtype)
        self.layer_norm = _layer_norm(config)
        self.weights_dropout = Dropout(config.attention_probs_dropout_prob)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(self, hidden: jax.Array, bias: jax.Array, deterministic: bool) -> jax.Array:
        """[batch, length, hidden], bias [batch, 1, 1 or length, length] -> like ``hidden``."""
        config = self.config
        head_size = config.hidden_size // config.num_attention_heads
        heads = (*hidden.shape[:-1], config.num_attention_heads, head_size)
        query, key, value = (
            dense(hidden).reshape(heads) for dense in (self.query, self.key, self.value)
        )
        # jax.nn's attention has no dropout of its weights.
        if self.fused and (deterministic or config.attention_probs_dropout_prob == 0):
            mixed = jax.nn.dot_product_attention(
                query, key, value, mask=bias == 0, implementation=self.fused
            )
        else:
            query = query * head_size**-0.5
            scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) + bias
            weights = jax.nn.softmax(scores).astype(self.dtype)
            weights = self.weights_dropout(weights, deterministic=deterministic)
            mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        update = self.output(mixed.reshape(hidden.shape))
        update = self.dropout(update, deterministic=deterministic)
        return self.layer_norm(hidden + update).astype(self.dtype)


class FeedForward(nn.Module):
    """The position-wise network with its residual connection and layer norm."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.intermediate = _dense(config, config.intermediate_size, self.dtype)
        self.output = _dense(config, config.hidden_size, self.dtype)
        self.layer_norm = _layer_norm(config)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(self, hidden: jax.Array, deterministic: bool) -> jax.Array:
        """[batch, length, hidden] -> [batch, length, hidden]."""
        activation = _ACTIVATIONS[self.config.hidden_act]
        update = self.output(activation(self.intermediate(hidden)))
        update = self.dropout(update, deterministic=deterministic)
        return self.layer_norm(hidden + update).astype(self.dtype)


class Layer(nn.Module):
    """One post-norm transformer layer."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    fused: Fused | None = None

    def setup(self) -> None:
        self.attention = Attention(self.config, self.dtype, self.fused)
        self.mlp = FeedForward(self.config, self.dtype)

    def __call__(self, hidden: jax.Array, bias: jax.Array, deterministic: bool) -> jax.Array:
        """[batch, length, hidden], bias [batch, 1, 1 or length, length] -> like ``hidden``."""
        return self.mlp(self.attention(hidden, bias, deterministic), deterministic)


def attention_bias(attention_mask: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
    """What is added to the attention scores: 0 where a token may look, else very negative.

    Args:
        attention_mask: [batch, length], nonzero at tokens that may be looked at.
        segment_ids: int32 [batch, length], in the place of the mask for rows that hold
            several texts: a token looks at its own segment only; segment 0 is padding.

    Returns:
        float32 [batch, 1, 1 or length, length].
    """
    if segment_ids is not None:
        visible = segment_ids[:, :, None] == segment_ids[:, None, :]
    else:
        visible = attention_mask[:, None, :] != 0
    return jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min)[:, None]


class BertEncoder(nn.Module):
    """Embeddings, L layers and an optional pooler; pure under ``apply``.

    Attributes:
        config: Sizes, activation, dropout rates.
        dtype: Precision of the computation.
        remat: Whether the backward pass computes each layer's activations again.
        fused: The implementation of ``jax.nn.dot_product_attention`` that layers use where the
            attention weights have no dropout; None for the plain products, always.
    """

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    fused: Fused | None = None

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config, self.dtype)
        # The third argument of a layer, whether it runs without dropout, is no array.
        layer = nn.remat(Layer, static_argnums=(3,)) if self.remat else Layer
        self.layer = [
            layer(self.config, self.dtype, self.fused) for _ in range(self.config.num_hidden_layers)
        ]
        self.pooler = _dense(self.config, self.config.hidden_size, self.dtype)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        *,
        train: bool = False,
        frozen_depth: int = 0,
    ) -> jax.Array:
        """Encodes token ids.

        Args:
            input_ids: int32 [batch, length].
            attention_mask: int32 [batch, length], 1 at tokens and 0 at padding; all 1 by
                default.
            token_type_ids: int32 [batch, length]; all 0 by default.
            position_ids: int32 [batch, length]; 0 ... length - 1 by default.
            segment_ids: int32 [batch, length]; see ``attention_bias``.
            train: Whether dropout is on; it then needs the random stream ``dropout``.
            frozen_depth: How much of the bottom runs without dropout even so: 0 nothing,
                1 the embeddings, 1 + k the embeddings and k layers.

        Returns:
            The last hidden state, [batch, length, hidden].
        """
        if attention_mask is None:
            attention_mask = jnp.ones_like(input_ids)
        bias = attention_bias(attention_mask, segment_ids)
        hidden = self.embed(
            input_ids, token_type_ids, position_ids, train=train and frozen_depth == 0
        )
        frozen_layers = max(frozen_depth - 1, 0)
        hidden = self.run_layers(hidden, bias, 0, frozen_layers, train=False)
        return self.run_layers(hidden, bias, frozen_layers, train=train)

    def embed(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """int32 [batch, length] -> [batch, length, hidden], the input of layer 0."""
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        if position_ids is None:
            position_ids = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        return self.embeddings(input_ids, token_type_ids, position_ids, not train)

    def run_layers(
        self,
        hidden: jax.Array,
        bias: jax.Array,
        start: int = 0,
        stop: int | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Runs layers ``start`` to ``stop - 1`` (by default the last one).

        Args:
            hidden: [batch, length, hidden], the input of layer ``start``.
            bias: From ``attention_bias``.
            start: First layer to run.
            stop: The layer after the last one to run.
            train: Whether dropout is on.

        Returns:
            [batch, length, hidden], the input of layer ``stop``.
        """
        for layer in self.layer[start:stop]:
            hidden = layer(hidden, bias, not train)
        return hidden

    def pool(self, first: jax.Array) -> jax.Array:
        """The pooler on the vectors of the first tokens: [..., hidden] -> [..., hidden]."""
        return jnp.tanh(self.pooler(first))
