"""Weighting by uncertainty: each task's noise is learned, and a noisy task weighs little."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from mtl_jax.training.weighting.base import Seen, State, Weighting, descend


@dataclasses.dataclass(frozen=True)
class Uncertainty(Weighting):
    """Kendall, Gal & Cipolla 2018 (arXiv:1705.07115), eq. 10, for classification.

    Of a regression, whose L is a squared error, they have L / 2 (eq. 7): with ``s - log 2`` in the
    place of ``s`` that is the same but for a constant: in the end both have the same weight.

    The loss is the sum over tasks of ``exp(-s) L + s / 2``, where ``s = log sigma^2`` is the
    logarithm of the task's noise; it is least at ``s = log 2L``. The ``s`` of a task is trained
    with the model, from 0 on, by an Adam of its own: it is not decayed, and has no part in the
    gradient norm that is clipped.

    Attributes:
        learning_rate: Adam's, constant; the default rate of the heads, which start from
            nothing, too.
    """

    name = "uncertainty"
    learning_rate: float = 3e-3

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def init(self, tasks: int) -> State:
        """See ``Weighting``: ``log_variances``, float32 [T], and Adam's state."""
        zeros = jnp.zeros(tasks)
        return {"log_variances": zeros, "adam": self._optimizer.init(zeros)}

    def weights(self, state: State, seen: Seen) -> jax.Array:
        """See ``Weighting``."""
        return seen.fixed * jnp.exp(-state["log_variances"])

    def update(self, state: State, seen: Seen, after: jax.Array) -> State:
        """See ``Weighting``; the gradient of a task without a label is 0."""
        del after
        s = state["log_variances"]
        gradient = jnp.where(seen.present, 0.5 - jnp.exp(-s) * seen.means, 0.0)
        s, adam = descend(self._optimizer, gradient, state["adam"], s)
        return {"log_variances": s, "adam": adam}
