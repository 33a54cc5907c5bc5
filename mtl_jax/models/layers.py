"""The layers of an encoder in Flax, as its ``EncoderConfig`` has them.

Whatever ``dtype`` is, only the factors of matrix products are rounded to it, and what is kept
between them. Sums, the residual stream, layer normalisation, the softmax and the activations are
float32, as under PyTorch's autocast: a sum of many numbers in bfloat16 stops growing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mtl_jax.models.dense_product import Dense, product
from mtl_jax.models.dropout import Dropout
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.fused_attention import Fused, attention
from mtl_jax.models.layer_norm import LayerNorm
from mtl_jax.models.positions import (
    Distances,
    Rotation,
    by_distance,
    distance_rows,
    places,
    relative_buckets,
    turned,
)


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

Blocks = tuple[tuple[int, int], ...]
"""How a row of tokens is cut for attention, from its start: ``(count, length)`` of blocks."""

Bias = tuple[jax.Array, ...]
"""What is added to the attention scores, for each kind of block: float32 [batch * count, 1,
1 or length, length]. A token sees only its own block."""


class View(NamedTuple):
    """What a layer reads beside the hidden states.

    Attributes:
        bias: Which tokens a token looks at.
        relative: What is added to the scores for the distance of two tokens, for each kind of
            block float32 [1, heads, length, length]; None without.
        rotation: None without rotary positions.
        distances: None but for disentangled attention.
    """

    bias: Bias
    relative: Bias | None = None
    rotation: Rotation | None = None
    distances: Distances | None = None


class Views(NamedTuple):
    """What the layers read beside the hidden states, the same for all of a kind.

    Attributes:
        whole: Of the layers in which a token looks at its whole text.
        local: Of the ``local_layers``; None where there are none.
    """

    whole: View
    local: View | None = None


def dense(
    config: EncoderConfig, features: int, dtype: DTypeLike, *, use_bias: bool = True
) -> Dense:
    """A Dense layer with BERT's initialisation."""
    init = nn.initializers.normal(config.initializer_range)
    return Dense(features, dtype, init, use_bias=use_bias)


def _layer_norm(config: EncoderConfig) -> LayerNorm:
    return LayerNorm(config.layer_norm_eps, config.norm_bias)


def _dropout(config: EncoderConfig, rate: float | None) -> Dropout:
    return Dropout(config.hidden_dropout_prob if rate is None else rate)


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
    window: int | None = None,
) -> Bias:
    """0 where a token may look, else very negative.

    Args:
        attention_mask: [batch, length], nonzero at tokens that may be looked at.
        segment_ids: int32 [batch, length], in the place of the mask for rows that hold
            several texts: a token looks at its own segment only; segment 0 is padding.
        blocks: Parts of a row that no segment crosses, together ``length`` long; by default
            one, the whole row.
        window: How far away a token may look at most; by default at all there are.
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
        if window is not None and not (isinstance(length, int) and length - 1 <= window):
            # A text's tokens lie side by side, wherever in a block it begins.
            place = places(length)
            visible &= jnp.asarray(abs(place[:, None] - place) <= window)
        bias.append(jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min)[:, None])
        start = stop
    return tuple(bias)


class Embeddings(nn.Module):
    """What stands for a token by itself, and what every layer is told of its place.

    The sum of word, position and token-type embeddings, normalised, as far as the encoder has
    them; projected where it is of another width.
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        # Looked up in float32 whatever the precision: a row's gradient is a sum over all its
        # tokens, and of bfloat16 numbers the sum is 84 % off at 16,384 tokens.
        embed = functools.partial(nn.Embed, features=config.word_size, embedding_init=init)
        self.word = embed(config.vocab_size)
        if config.has_positions:
            self.position = embed(config.max_position_embeddings)
        if config.type_vocab_size:
            self.token_type = embed(config.type_vocab_size)
        self.layer_norm = _layer_norm(config)
        self.dropout = _dropout(config, config.embedding_dropout_prob)
        if config.word_size != config.hidden_size:
            self.projection = dense(config, config.hidden_size, self.dtype)
        if config.relative_attention_num_buckets:
            self.relative_position = nn.Embed(
                config.relative_attention_num_buckets,
                config.num_attention_heads,
                embedding_init=init,
            )
        if config.position_buckets is not None:
            self.distance = nn.Embed(
                2 * config.position_buckets, config.hidden_size, embedding_init=init
            )
            self.distance_norm = _layer_norm(config)

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """int32 [batch, length] x 3 -> float32 [batch, length, hidden]."""
        config = self.config
        summed = self.word(input_ids)
        if config.type_vocab_size:
            summed = summed + self.token_type(token_type_ids)
        if config.has_positions:
            summed = summed + self.position(position_ids + config.first_position)
        hidden = self.dropout(self.layer_norm(summed), deterministic=deterministic)
        return hidden if config.word_size == config.hidden_size else self.projection(hidden)

    def relative(self, blocks: Blocks) -> Bias | None:
        """What distances add to the scores; see ``View``."""
        if not self.config.relative_attention_num_buckets:
            return None
        tables = (self.relative_position(relative_buckets(length)) for _, length in blocks)
        return tuple(jnp.moveaxis(table, -1, 0)[None] for table in tables)

    def distances(self, blocks: Blocks) -> Distances | None:
        """What layers know of distances; see ``View``."""
        config = self.config
        if config.position_buckets is None:
            return None
        known = config.position_buckets, config.max_relative_positions
        rows = tuple(distance_rows(length, *known) for _, length in blocks)
        return Distances(self.distance_norm(self.distance.embedding), rows)


class Attention(nn.Module):
    """Multi-head self-attention with its residual connection and layer norm.

    Attributes:
        config: The encoder's.
        dtype: As of ``EncoderModule``.
        fused: As of ``EncoderModule``.
        normalised: Whether the input is normalised already, so that there is no layer norm.
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    fused: Fused | None = None
    normalised: bool = False

    def setup(self) -> None:
        config = self.config
        project = functools.partial(
            dense, config, config.hidden_size, self.dtype, use_bias=config.attention_bias
        )
        self.query, self.key, self.value, self.output = (project() for _ in range(4))
        if not self.normalised:
            self.layer_norm = _layer_norm(config)
        rate, on = config.attention_probs_dropout_prob, config.attention_dropout_on
        self.weights_dropout = Dropout(rate if on == "weights" else 0.0)
        self.mixed_dropout = Dropout(rate)
        self.dropout = _dropout(config, config.attention_output_dropout_prob)
        if config.position_buckets is not None:
            self.distance_dropout = _dropout(config, None)

    def __call__(self, hidden: jax.Array, view: View, deterministic: bool) -> jax.Array:
        """float32 [batch, length, hidden] -> the same."""
        config, given = self.config, hidden
        if config.norm_first and not self.normalised:
            given = self.layer_norm(hidden)
        query, key, value = (project(given) for project in (self.query, self.key, self.value))
        if view.rotation is not None:
            query, key = (self._turned(whole, view.rotation) for whole in (query, key))
        query, key, value = (whole.astype(self.dtype) for whole in (query, key, value))
        far = self._far(view.distances, deterministic)
        mixed, cut = [], [(query, key, value)]
        if len(view.bias) > 1:
            sizes = [kind.shape[0] // len(hidden) * kind.shape[-1] for kind in view.bias]
            # Whose gradient is put together in one go, where those of slices would be added up.
            cut = zip(*(jax.lax.split(whole, sizes, 1) for whole in cut[0]), strict=True)
        for i, (of_kind, wholes) in enumerate(zip(view.bias, cut, strict=True)):
            blocks, length = of_kind.shape[0], of_kind.shape[-1]
            q, k, v = (
                whole.reshape(blocks, length, config.num_attention_heads, -1) for whole in wholes
            )
            relative = None if view.relative is None else view.relative[i]
            apart = None if far is None else far[i]
            of_blocks = self._mix(q, k, v, of_kind, relative, apart, deterministic)
            mixed.append(of_blocks.reshape(len(hidden), -1, hidden.shape[-1]))
        whole = jnp.concatenate(mixed, axis=1)
        if config.attention_dropout_on == "output":
            whole = self.mixed_dropout(whole, deterministic=deterministic)
        update = self.output(whole)
        update = self.dropout(update, deterministic=deterministic)
        return hidden + update if config.norm_first else self.layer_norm(hidden + update)

    def _far(
        self, distances: Distances | None, deterministic: bool
    ) -> list[tuple[jax.Array, jax.Array]] | None:
        """For each kind of block queries and keys that distances have in the place of words.

        Both are of ``dtype`` [2 * length - 1, heads, head size], for what
        ``by_distance`` reads: those of a key's distance, and those of a query's.
        """
        if distances is None:
            return None
        table = self.distance_dropout(distances.table, deterministic=deterministic)
        query, key = (
            project(table)
            .reshape(len(table), self.config.num_attention_heads, -1)
            .astype(self.dtype)
            for project in (self.query, self.key)
        )
        return [(query[rows], key[rows[::-1]]) for rows in distances.rows]

    def _turned(self, whole: jax.Array, by: Rotation) -> jax.Array:
        heads = whole.reshape(*whole.shape[:2], self.config.num_attention_heads, -1)
        return turned(heads, by).reshape(whole.shape)

    def _mix(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        bias: jax.Array,
        relative: jax.Array | None,
        far: tuple[jax.Array, jax.Array] | None,
        deterministic: bool,
    ) -> jax.Array:
        """[blocks, length, heads, head size] x 3 -> the same, mixed by attention."""
        # It has no dropout of the weights that differs from step to step.
        no_dropout = deterministic or not self.config.drops_attention_weights
        if self.fused and no_dropout and relative is None and far is None:
            # cuDNN takes no mask that is the same for all queries and left to be broadcast.
            mask = jnp.broadcast_to(bias == 0, (*bias.shape[:2], query.shape[1], key.shape[1]))
            return attention(query, key, value, mask, self.fused)
        # The scores of disentangled attention are a sum of three products.
        scale = (query.shape[-1] * (1 if far is None else 3)) ** -0.5

        def times(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
            if self.dtype == jnp.float32:
                return jnp.einsum(spec, left * scale, right)
            # Scaled afterwards, so that no query is rounded twice.
            return product(spec, self.dtype, left, right) * scale

        scores = times("bqhd,bkhd->bhqk", query, key)
        if far is not None:
            of_query = by_distance(times("bqhd,rhd->bhqr", query, far[1]))
            of_key = by_distance(times("bkhd,rhd->bhkr", key, far[0]))
            scores = scores + of_query + of_key.swapaxes(-1, -2)
        if relative is not None:
            scores = scores + relative
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
        inner = functools.partial(
            dense, config, config.intermediate_size, self.dtype, use_bias=config.mlp_bias
        )
        self.intermediate = inner()
        if config.gated_mlp:
            self.gate = inner()
        self.output = dense(config, config.hidden_size, self.dtype, use_bias=config.mlp_bias)
        self.layer_norm = _layer_norm(config)
        self.dropout = _dropout(config, config.mlp_dropout_prob)

    def __call__(self, hidden: jax.Array, deterministic: bool) -> jax.Array:
        """float32 [batch, length, hidden] -> the same."""
        config, inside = self.config, self.config.mlp_dropout_prob is not None
        given = self.layer_norm(hidden) if config.norm_first else hidden
        gate = self.gate(given) if config.gated_mlp else None
        inner = self._activated(self.intermediate(given), gate)
        if inside:
            inner = self.dropout(inner, deterministic=deterministic)
        update = self.output(inner)
        if not inside:
            update = self.dropout(update, deterministic=deterministic)
        return hidden + update if config.norm_first else self.layer_norm(hidden + update)

    def _activated(self, x: jax.Array, gate: jax.Array | None = None) -> jax.Array:
        activation = _ACTIVATIONS[self.config.hidden_act]

        def activated(*halves: jax.Array) -> jax.Array:
            first, *gates = (half.astype(jnp.float32) for half in halves)
            return activation(first) * gates[0] if gates else activation(first)

        halves = (x,) if gate is None else (x, gate)
        if self.dtype == jnp.float32:
            return activated(*halves)
        # Computed in float32, of what is kept in half precision for the backward pass.
        return jax.checkpoint(activated)(*(half.astype(self.dtype) for half in halves))


class Layer(nn.Module):
    """One transformer layer.

    Attributes:
        config: The encoder's.
        dtype: As of ``EncoderModule``.
        fused: As of ``EncoderModule``.
        index: Its number.
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    fused: Fused | None = None
    index: int = 0

    def setup(self) -> None:
        config, norm_first = self.config, self.config.norm_first
        normalised = norm_first and self.index == 0
        self.attention = Attention(config, self.dtype, self.fused, normalised)
        self.mlp = FeedForward(config, self.dtype)
        self.is_last = norm_first and self.index == config.num_hidden_layers - 1
        if self.is_last:
            self.final_norm = _layer_norm(config)

    def __call__(self, hidden: jax.Array, view: View, deterministic: bool) -> jax.Array:
        """float32 [batch, length, hidden] -> the same."""
        hidden = self.mlp(self.attention(hidden, view, deterministic), deterministic)
        return self.final_norm(hidden) if self.is_last else hidden
