"""The one model: a shared backbone, a pooled vector per text, a head per task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import Scope
from jax.typing import DTypeLike

from mtl_jax.config.model import Pooling
from mtl_jax.models.dropout import Dropout
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.models.fused_attention import Fused
from mtl_jax.models.layers import Blocks, exact_dense

Batch = Mapping[str, jax.Array]
"""Rows of packed texts: int32 [rows, length] ``input_ids``, ``position_ids`` (from 0 in each
text) and ``segment_ids`` (1 ... slots; 0 is padding), where texts are pairs with
``token_type_ids``, with labels per task: int32 [rows, slots], of several labels int8
[rows, slots, classes], of a regression float32 [rows, slots];
or, in the place of ``input_ids``, what the frozen part of the backbone made of them: ``states``,
float32 [rows, length, hidden], or the ``pooled`` vectors themselves, float32 [rows, slots, hidden].
Where predictions are held in training: float32 [rows, slots, ...] ``target_`` and the task's
name, such as probabilities, all 0 where there is no text.
"""


def looked_up(batch: Batch) -> dict[str, jax.Array]:
    """By its path, which rows of a table a batch reads: elsewhere its gradient is 0."""
    words = "backbone/embeddings/word/embedding"
    return {words: batch["input_ids"]} if "input_ids" in batch else {}


Loss = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Logits, float32 [..., outputs], and labels to the sum of the losses and the number of labels that
it is of, float32 scalars. Labels are int32 [...], negative where missing; of several labels int8
[..., classes], 1 where a text has the class, and a row of -1 where missing; of a regression
float32 [...], standardised, NaN where missing."""


@dataclasses.dataclass(frozen=True)
class Head:
    """A head in the place of the Dense layer, held so that Flax does not name it itself."""

    module: nn.Module


class MultiTaskModule(nn.Module):
    """Backbone and heads; the tree is ``backbone``, and each task by its name.

    A head is a Dense layer, unless ``heads`` has another: a Flax module from pooled vectors,
    float32 [rows, slots, hidden], to logits, float32 [rows, slots, classes].

    Attributes:
        config: The backbone's.
        classes: ``(task, outputs)`` of each head: its classes, or 1 of a regression.
        pooling: How a text's token vectors become one.
        dtype: As of ``EncoderModule``.
        states_depth: Where a batch's ``states`` enter: 1 + k is the input of layer k.
        blocks: How the rows of a batch are cut, see ``attention_bias``; no text crosses a cut.
        remat: As of ``EncoderModule``.
        scan_layers: As of ``EncoderModule``.
        fused: As of ``EncoderModule``.
        heads: ``(task, head)`` of those that are no Dense layer.
        losses: ``(task, loss)`` of those that are not the usual one of their kind.
        head_dropout: Of the vectors that the heads read; None for the checkpoint's.
    """

    config: EncoderConfig
    classes: tuple[tuple[str, int], ...]
    pooling: Pooling = "mean"
    dtype: DTypeLike = jnp.float32
    states_depth: int = 0
    blocks: Blocks | None = None
    remat: bool = False
    scan_layers: bool = False
    fused: Fused | None = None
    heads: tuple[tuple[str, Head], ...] = ()
    losses: tuple[tuple[str, Loss], ...] = ()
    head_dropout: float | None = None

    def setup(self) -> None:
        self.backbone = EncoderModule(
            self.config, self.dtype, self.remat, self.scan_layers, self.fused
        )
        rate = self.head_dropout
        self.dropout = Dropout(self.config.head_dropout if rate is None else rate)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in their order."""
        return tuple(task for task, _ in self.classes)

    @nn.compact
    def __call__(
        self, batch: Batch, *, train: bool = False, frozen_depth: int = 0
    ) -> dict[str, jax.Array]:
        """Logits per task, float32 [rows, slots, classes]; see ``EncoderModule`` for the flags."""
        if "pooled" in batch:
            pooled = batch["pooled"]
        else:
            pooled = self.pooled(batch, train=train, frozen_depth=frozen_depth)
        pooled = self.dropout(pooled, deterministic=not train)
        return {task: self._head(task, classes)(pooled) for task, classes in self.classes}

    def _head(self, task: str, classes: int) -> nn.Module:
        own = dict(self.heads).get(task)
        head = own.module if own else exact_dense(self.config, classes, parent=None)
        # In a scope of its own, so that a task may be called what a Flax module has already.
        return head.clone(parent=cast("Scope", self.scope).push(task))

    def init_heads(self, rng: jax.Array) -> dict[str, Any]:
        """Fresh parameters of the heads: normal kernels, zero biases."""
        vectors = jnp.zeros((1, 1, self.config.hidden_size))
        return dict(self.init(rng, {"pooled": vectors})["params"])

    def pooled(self, batch: Batch, *, train: bool = False, frozen_depth: int = 0) -> jax.Array:
        """One vector per text, float32 [rows, slots, hidden]; empty slots hold no meaning."""
        segments, positions = batch["segment_ids"], batch["position_ids"]
        if "states" in batch:
            views = self.backbone.views(segments, segments, positions, self.blocks)
            start = self.states_depth - 1
            hidden = self.backbone.run_layers(batch["states"], views, start, train=train)
        else:
            hidden = self.backbone(
                batch["input_ids"],
                token_type_ids=batch.get("token_type_ids"),
                position_ids=positions,
                segment_ids=segments,
                blocks=self.blocks,
                train=train,
                frozen_depth=frozen_depth,
            )
        return self._vectors(batch, hidden)

    def pooled_at(self, batch: Batch, depth: int) -> jax.Array:
        """As ``pooled``, of the ``states`` at a depth: of what the layers below it make."""
        return self._vectors(batch, self.states(batch, depth))

    def _vectors(self, batch: Batch, hidden: jax.Array) -> jax.Array:
        """Token states, float32 [rows, length, hidden], to a vector per text."""
        segments, positions = batch["segment_ids"], batch["position_ids"]
        slots = batch[self.tasks[0]].shape[1]
        member = segments[:, None, :] == jnp.arange(1, slots + 1)[None, :, None]
        if self.pooling == "mean":
            weights = member / jnp.maximum(member.sum(-1, keepdims=True), 1)
        else:
            weights = member & (positions[:, None, :] == 0)
        weights, exact = weights.astype(jnp.float32), jax.lax.Precision.HIGHEST
        vectors = jnp.einsum("rst,rth->rsh", weights, hidden, precision=exact)
        return self.backbone.pool(vectors) if self.pooling == "pooler" else vectors

    def states(self, batch: Batch, depth: int) -> jax.Array:
        """The input of layer ``depth - 1``, float32 [rows, length, hidden], from a batch."""
        segments, positions = batch["segment_ids"], batch["position_ids"]
        start = self.states_depth
        if "states" in batch:
            hidden = batch["states"]
        else:
            types = batch.get("token_type_ids")
            hidden = self.backbone.embed(batch["input_ids"], types, positions)
            start = 1
        views = self.backbone.views(segments, segments, positions, self.blocks)
        return self.backbone.run_layers(hidden, views, start - 1, depth - 1)
