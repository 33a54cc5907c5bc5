"""BERT's encoder (Devlin et al. 2018, arXiv:1810.04805) in Flax, runnable from any layer.

The parameter tree is ``embeddings``, ``layer_0`` ... ``layer_{L-1}`` and, where a
checkpoint has one, ``pooler``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.layers import (
    Bias,
    Blocks,
    Embeddings,
    Fused,
    Layer,
    attention_bias,
    exact_dense,
)


class EncoderModule(nn.Module):
    """Embeddings, L layers and an optional pooler; pure under ``apply``.

    Attributes:
        config: Sizes, activation, dropout rates.
        dtype: Precision of the factors of its matrix products; see ``layers``.
        remat: Whether the backward pass computes each layer's activations again.
        scan_layers: Whether layers that run one after the other are one ``lax.scan``, which
            compiles once for all of them, and copies their parameters in every step.
        fused: The implementation of ``jax.nn.dot_product_attention`` that layers use where the
            attention weights have no dropout; None for the plain products, always.
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan_layers: bool = False
    fused: Fused | None = None

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config)
        # The third argument of a layer, whether it runs without dropout, is no array.
        layer = nn.remat(Layer, static_argnums=(3,)) if self.remat else Layer
        self.layer = [
            layer(self.config, self.dtype, self.fused) for _ in range(self.config.num_hidden_layers)
        ]
        self.pooler = exact_dense(self.config, self.config.hidden_size)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        *,
        blocks: Blocks | None = None,
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
            blocks: See ``attention_bias``.
            train: Whether dropout is on; it then needs the random stream ``dropout``.
            frozen_depth: How much of the bottom runs without dropout even so: 0 nothing,
                1 the embeddings, 1 + k the embeddings and k layers.

        Returns:
            The last hidden state, float32 [batch, length, hidden].
        """
        if attention_mask is None:
            attention_mask = jnp.ones_like(input_ids)
        bias = attention_bias(attention_mask, segment_ids, blocks)
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
        """int32 [batch, length] -> float32 [batch, length, hidden], the input of layer 0."""
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        if position_ids is None:
            position_ids = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        return self.embeddings(input_ids, token_type_ids, position_ids, not train)

    def run_layers(
        self,
        hidden: jax.Array,
        bias: Bias,
        start: int = 0,
        stop: int | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Runs layers ``start`` to ``stop - 1`` (by default the last one).

        Args:
            hidden: float32 [batch, length, hidden], the input of layer ``start``.
            bias: From ``attention_bias``.
            start: First layer to run.
            stop: The layer after the last one to run.
            train: Whether dropout is on.

        Returns:
            float32 [batch, length, hidden], the input of layer ``stop``.
        """
        layers = self.layer[start:stop]
        if self.scan_layers and len(layers) > 1 and not self.is_initializing():
            return self._scan(layers, hidden, bias, train)
        for layer in layers:
            hidden = layer(hidden, bias, not train)
        return hidden

    def _scan(
        self, layers: Sequence[nn.Module], hidden: jax.Array, bias: Bias, train: bool
    ) -> jax.Array:
        own = Layer(self.config, self.dtype, self.fused, parent=None)
        params = [layer.variables["params"] for layer in layers]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        keys = jax.random.split(self.make_rng("dropout"), len(layers)) if train else None

        def step(hidden: jax.Array, of_layer: tuple[Any, Any]) -> tuple[jax.Array, None]:
            params, key = of_layer
            rngs = {"dropout": key} if train else None
            return own.apply({"params": params}, hidden, bias, not train, rngs=rngs), None  # pyright: ignore[reportReturnType]

        body = jax.checkpoint(step, prevent_cse=False) if self.remat else step
        return jax.lax.scan(body, hidden, (stacked, keys))[0]

    def pool(self, first: jax.Array) -> jax.Array:
        """The pooler on the vectors of the first tokens: float32 [..., hidden], both."""
        return jnp.tanh(self.pooler(first))
