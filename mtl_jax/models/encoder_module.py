"""A transformer encoder (BERT: Devlin et al. 2018, arXiv:1810.04805), runnable from any layer.

The parameter tree is ``embeddings``, ``layer_0`` ... ``layer_{L-1}`` and, where a checkpoint has
one, ``pooler``. What all layers read, a table of relative positions, is of the ``embeddings``; a
norm after the last layer is of that layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.fused_attention import Fused
from mtl_jax.models.layers import (
    Blocks,
    Embeddings,
    Layer,
    View,
    Views,
    attention_bias,
    exact_dense,
)
from mtl_jax.models.positions import rotation


class EncoderModule(nn.Module):
    """Embeddings, L layers and an optional pooler; pure under ``apply``.

        config, params = mtl.load_backbone("bert-base-uncased")
        hidden = mtl.EncoderModule(config).apply({"params": params}, jnp.array([[101, 7592, 102]]))

    Attributes:
        config: Sizes, activation, dropout rates.
        dtype: Precision of the factors of its matrix products; see ``layers``.
        remat: Whether the backward pass computes each layer's activations again.
        scan_layers: Whether layers that run one after the other are one ``lax.scan``, which
            compiles once for all of them, and copies their parameters in every step.
        fused: The implementation of ``fused_attention`` that layers use where the attention
            weights have no dropout; None for the plain products, always.
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan_layers: bool = False
    fused: Fused | None = None

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config, self.dtype)
        # The third argument of a layer, whether it runs without dropout, is no array.
        layer = nn.remat(Layer, static_argnums=(3,)) if self.remat else Layer
        self.layer = [
            layer(self.config, self.dtype, self.fused, i)
            for i in range(self.config.num_hidden_layers)
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
        views = self.views(attention_mask, segment_ids, position_ids, blocks)
        hidden = self.embed(
            input_ids, token_type_ids, position_ids, train=train and frozen_depth == 0
        )
        frozen_layers = max(frozen_depth - 1, 0)
        hidden = self.run_layers(hidden, views, 0, frozen_layers, train=False)
        return self.run_layers(hidden, views, frozen_layers, train=train)

    def views(
        self,
        attention_mask: jax.Array,
        segment_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        blocks: Blocks | None = None,
    ) -> Views:
        """What the layers read beside the hidden states.

        Args:
            attention_mask: As of ``attention_bias``, as are ``segment_ids`` and ``blocks``.
            segment_ids: int32 [batch, length].
            position_ids: int32 [batch, length], of each token in its text; 0 ... length - 1 by
                default.
            blocks: Parts of a row that no segment crosses.
        """
        config = self.config
        head = config.hidden_size // config.num_attention_heads
        given = attention_mask, segment_ids, blocks
        cut = blocks or ((1, attention_mask.shape[1]),)
        whole, local = View(attention_bias(*given), self.embeddings.relative(cut)), None
        whole = whole._replace(distances=self.embeddings.distances(cut))
        if config.global_rope_theta is not None:
            if position_ids is None:
                position_ids = jnp.arange(attention_mask.shape[1])[None]
            whole = whole._replace(rotation=rotation(position_ids, config.global_rope_theta, head))
        if config.local_layers:
            local = whole._replace(bias=attention_bias(*given, window=config.local_attention // 2))
            if position_ids is not None and config.local_rope_theta is not None:
                turned = rotation(position_ids, config.local_rope_theta, head)
                local = local._replace(rotation=turned)
        return Views(whole, local)

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
        if position_ids is None and self.config.first_position:
            # The last row before the first position is that of padding, and has its id.
            token = input_ids != self.config.first_position - 1
            position_ids = jnp.where(token, jnp.cumsum(token, axis=1), 0) - 1
        elif position_ids is None:
            position_ids = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        return self.embeddings(input_ids, token_type_ids, position_ids, not train)

    def run_layers(
        self,
        hidden: jax.Array,
        views: Views,
        start: int = 0,
        stop: int | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Runs layers ``start`` to ``stop - 1`` (by default the last one).

        Args:
            hidden: float32 [batch, length, hidden], the input of layer ``start``.
            views: From ``views``.
            start: First layer to run.
            stop: The layer after the last one to run.
            train: Whether dropout is on.

        Returns:
            float32 [batch, length, hidden], the input of layer ``stop``.
        """
        numbers = range(self.config.num_hidden_layers)[start:stop]
        if not self.scan_layers or self.is_initializing():
            for i in numbers:
                hidden = self.layer[i](hidden, self._view(views, i), not train)
            return hidden
        # The first and the last layer may have other parameters than those between.
        for _, alike in itertools.groupby(numbers, self._structure):
            several = list(alike)
            if len(several) > 1:
                hidden = self._scan(several, hidden, views, train)
            else:
                hidden = self.layer[several[0]](hidden, self._view(views, several[0]), not train)
        return hidden

    def _view(self, views: Views, layer: int) -> View:
        local = layer in self.config.local_layers
        return views.local if local and views.local is not None else views.whole

    def _structure(self, layer: int) -> Any:
        return jax.tree.structure(self.layer[layer].variables["params"])

    def _scan(
        self, numbers: Sequence[int], hidden: jax.Array, views: Views, train: bool
    ) -> jax.Array:
        own = Layer(self.config, self.dtype, self.fused, numbers[0], parent=None)
        params = [self.layer[i].variables["params"] for i in numbers]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        keys = jax.random.split(self.make_rng("dropout"), len(numbers)) if train else None
        kinds = [i in self.config.local_layers for i in numbers]
        # None where all layers are of a kind, so that nothing is chosen in the loop.
        mixed = jnp.asarray(kinds) if len(set(kinds)) > 1 else None

        def step(hidden: jax.Array, of_layer: tuple[Any, Any, Any]) -> tuple[jax.Array, None]:
            params, key, is_local = of_layer
            view = self._view(views, numbers[0])
            if is_local is not None:
                view = jax.tree.map(lambda whole, local: jnp.where(is_local, local, whole), *views)
            rngs = {"dropout": key} if train else None
            return own.apply({"params": params}, hidden, view, not train, rngs=rngs), None  # pyright: ignore[reportReturnType]

        body = jax.checkpoint(step, prevent_cse=False) if self.remat else step
        return jax.lax.scan(body, hidden, (stacked, keys, mixed))[0]

    def pool(self, first: jax.Array) -> jax.Array:
        """The pooler on the vectors of the first tokens: float32 [..., hidden], both."""
        return jnp.tanh(self.pooler(first))
