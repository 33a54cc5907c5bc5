"""A batch computed in micro-batches, one after the other: activations of one at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.models.multitask import Batch


class MicroBatches(NamedTuple):
    """How a step computes its batch in micro-batches, one after the other.

    Attributes:
        number: How many.
        shards: Over how many devices the compiler spreads the rows of the batch that it sees, so
            that each has its share of every micro-batch.
    """

    number: int = 1
    shards: int = 1

    def split(self, batch: Batch) -> Batch:
        """Cuts [rows, ...] into [number, rows / number, ...], pieces of each device's rows."""

        def of_leaf(leaf: jax.Array) -> jax.Array:
            rows = len(leaf) // (self.shards * self.number)
            pieces = leaf.reshape(self.shards, self.number, rows, *leaf.shape[1:])
            return jnp.moveaxis(pieces, 1, 0).reshape(self.number, -1, *leaf.shape[1:])

        return jax.tree.map(of_leaf, batch)

    def summed(self, function: Callable[..., Any], batch: Batch, key: jax.Array) -> Any:
        """The sum over the micro-batches of what a function makes of each.

        Args:
            function: Of a micro-batch and a random key to a tree of arrays.
            batch: The whole.
            key: Of the step.
        """
        if self.number == 1:
            return function(batch, key)
        parts = (
            self.split(batch),
            jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(self.number)),
        )
        first = jax.tree.map(lambda leaf: leaf[0], parts)
        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *first)
        )

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, function(*part)), None

        return jax.lax.scan(add, nothing, parts)[0]


WHOLE = MicroBatches()
