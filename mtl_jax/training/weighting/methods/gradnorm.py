"""GradNorm: the gradients of the tasks are kept at lengths that make all learn equally fast."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import optax

from mtl_jax.freezing.partition import Params
from mtl_jax.training.weighting.base import Seen, State, Weighting, descend, kept_unless


@dataclasses.dataclass(frozen=True)
class GradNorm(Weighting):
    """Chen, Badrinarayanan, Lee & Rabinovich 2018 (arXiv:1711.02257), eq. 2 and Algorithm 1.

    ``G_t = |grad w_t L_t|`` is the norm at the last shared layer, here the topmost stage of the
    backbone that is trained at all. The weights fall along the gradient of ``sum_t |G_t -
    mean(G) r_t^alpha|``, whose second term is taken as constant, by an Adam of their own; ``r``
    is ``L(now) / L(first)`` divided by its mean over tasks. Then they are scaled to sum to the
    number of tasks. The first losses are those of the phase's first step with labels of the
    task; a step that lacks those of a task leaves the weights as they are.

    Attributes:
        alpha: How strongly a task that lags is pulled; the authors' choice on NYUv2.
        learning_rate: Adam's for the weights.
        floor: What no weight falls below before it is scaled: steps of Adam could lead beyond 0.
    """

    name = "gradnorm"
    compares_gradients = True
    alpha: float = 1.5
    learning_rate: float = 0.025
    floor: float = 1e-3

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def init(self, tasks: int) -> State:
        """See ``Weighting``: ``weights`` and ``first`` losses, float32 [T], and Adam's state."""
        ones = jnp.ones(tasks)
        return {"weights": ones, "first": jnp.zeros(tasks), "adam": self._optimizer.init(ones)}

    def compared(self, shared: Params) -> Params:
        """See ``Weighting``: the last stage."""
        if not shared:
            return {}
        last = max(shared, key=_height)
        return {last: shared[last]}

    def weights(self, state: State, seen: Seen) -> jax.Array:
        """See ``Weighting``."""
        return seen.fixed * state["weights"]

    def update(self, state: State, seen: Seen, after: jax.Array) -> State:
        """See ``Weighting``."""
        del after
        weights = state["weights"]
        first = jnp.where((state["first"] == 0) & seen.present, seen.means, state["first"])
        tasks = jnp.maximum(seen.balanced.sum(), 1)

        def over_tasks(values: jax.Array) -> jax.Array:
            return jnp.where(seen.balanced, values, 0.0).sum() / tasks

        ratio = seen.means / jnp.where(first > 0, first, 1.0)
        mean_ratio = over_tasks(ratio)
        rate = ratio / jnp.where(mean_ratio > 0, mean_ratio, 1.0)
        lengths = jnp.sqrt(jnp.diagonal(seen.gram))
        target = over_tasks(weights * lengths) * rate**self.alpha
        gradient = jnp.sign(weights * lengths - target) * lengths
        gradient = jnp.where(seen.balanced, gradient, 0.0)
        moved, adam = descend(self._optimizer, gradient, state["adam"], weights)
        moved = jnp.maximum(moved, self.floor)
        moved = jnp.where(seen.balanced, moved / over_tasks(moved), 1.0)
        new = {"weights": moved, "adam": adam}
        old = {"weights": weights, "adam": state["adam"]}
        return {**kept_unless(seen.complete, new, old), "first": first}


def _height(stage: str) -> int:
    """Where a stage of the backbone is, from below."""
    if stage == "pooler":
        return 10**6
    layer = re.fullmatch(r"layer_(\d+)", stage)
    return int(layer[1]) + 1 if layer else 0
