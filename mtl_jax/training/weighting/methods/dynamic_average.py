"""Dynamic weight average: a task whose loss falls slowly weighs more in the next epoch."""

from __future__ import annotations

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from mtl_jax.training.weighting.base import Seen, State, Weighting, mean, softmax_over


@dataclasses.dataclass(frozen=True)
class DynamicAverage(Weighting):
    """Liu, Johns & Davison 2019 (arXiv:1803.10704), eq. 7.

    In epoch e the weights of the K tasks are ``K softmax(r / T)``, where ``r = L(e - 1) /
    L(e - 2)`` is by how much the task's mean loss of an epoch has changed; 1 in the first two
    epochs, and for a task that had no label in one of those compared.

    Attributes:
        steps_per_epoch: Steps of an epoch.
        temperature: T, which the authors set to 2.
    """

    name = "dynamic_average"
    steps_per_epoch: int
    temperature: float = 2.0

    @classmethod
    def of_epochs(cls, steps_per_epoch: int) -> Self:
        """See ``Weighting``."""
        return cls(steps_per_epoch)

    @property
    def idle_steps(self) -> int:
        """See ``Weighting``: it compares two epochs that are over."""
        return 2 * self.steps_per_epoch

    def init(self, tasks: int) -> State:
        """See ``Weighting``: what the epoch has summed so far, and the means of the last two."""
        # Arrays of their own: the buffers are given away with the state.
        names = ("sums", "counts", "last", "before_last")
        return {"step": jnp.zeros((), jnp.int32), **{name: jnp.zeros(tasks) for name in names}}

    def weights(self, state: State, seen: Seen) -> jax.Array:
        """See ``Weighting``."""
        last, before = state["last"], state["before_last"]
        known = (last > 0) & (before > 0)
        ratio = jnp.where(known, last / jnp.where(known, before, 1.0), 1.0)
        share = softmax_over(seen.balanced, ratio / self.temperature)
        return seen.fixed * seen.balanced.sum() * share

    def update(self, state: State, seen: Seen, after: jax.Array) -> State:
        """See ``Weighting``."""
        del after
        step = state["step"] + 1
        sums, counts = state["sums"] + seen.sums, state["counts"] + seen.counts
        ends = step == self.steps_per_epoch
        return {
            "step": jnp.where(ends, 0, step),
            "sums": jnp.where(ends, 0.0, sums),
            "counts": jnp.where(ends, 0.0, counts),
            "last": jnp.where(ends, mean(sums, counts), state["last"]),
            "before_last": jnp.where(ends, state["last"], state["before_last"]),
        }
