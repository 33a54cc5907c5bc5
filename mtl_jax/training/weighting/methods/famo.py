"""FAMO: the logarithms of all losses fall at about the same rate, at the cost of one gradient."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from mtl_jax.training.weighting.base import (
    Seen,
    State,
    Weighting,
    descend,
    kept_unless,
    mean,
    softmax_over,
)


@dataclasses.dataclass(frozen=True)
class Famo(Weighting):
    """Fast adaptive multitask optimization: Liu, Feng, Stone & Liu 2023 (arXiv:2306.03792).

    Algorithm 1: with ``z = softmax(xi)`` the step follows ``sum_t z_t grad log L_t``, divided
    by ``sum_t z_t / L_t``, so that the weights of the losses sum to 1. Then ``xi`` falls along
    ``J^T (log L - log L') + gamma xi``, where J is the Jacobian of the softmax and L' are the
    losses after the step, on the same batch and with the same dropout: a task that has improved
    more than the others weighs less. As in the authors' code Adam takes that step, of which
    ``gamma xi`` is a part of the gradient. A step that lacks the labels of a task leaves ``xi``
    as it is, and is shared by the others.

    Attributes:
        learning_rate: Adam's for ``xi``, as in the authors' code.
        gamma: By which ``xi`` decays, as in the authors' code.
        floor: Least loss in nats that is reckoned with. A cross-entropy in float32 can be 0,
            and would take all the weight.
    """

    name = "famo"
    looks_again = True
    learning_rate: float = 0.025
    gamma: float = 0.01
    floor: float = 1e-4

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(self.gamma), optax.adam(self.learning_rate))

    def init(self, tasks: int) -> State:
        """See ``Weighting``: ``xi``, float32 [T], and Adam's state."""
        zeros = jnp.zeros(tasks)
        return {"xi": zeros, "adam": self._optimizer.init(zeros)}

    def weights(self, state: State, seen: Seen) -> jax.Array:
        """See ``Weighting``."""
        slopes = softmax_over(seen.balanced, state["xi"]) / jnp.maximum(seen.means, self.floor)
        slopes = jnp.where(seen.present, slopes, 0.0)
        total = slopes.sum()
        return seen.fixed * slopes / jnp.where(total > 0, total, 1.0)

    def update(self, state: State, seen: Seen, after: jax.Array) -> State:
        """See ``Weighting``."""
        fallen = self._log(seen.means) - self._log(mean(after, seen.counts))
        share = softmax_over(seen.balanced, state["xi"])
        gradient = share * (fallen - (share * fallen).sum())
        xi, adam = descend(self._optimizer, gradient, state["adam"], state["xi"])
        return kept_unless(seen.complete, {"xi": xi, "adam": adam}, state)

    def _log(self, losses: jax.Array) -> jax.Array:
        return jnp.log(jnp.maximum(losses, self.floor))
