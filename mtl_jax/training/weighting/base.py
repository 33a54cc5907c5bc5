"""What a method of weighting is, and what it may know of a step."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from mtl_jax.freezing.partition import Params

_LEAST = jnp.finfo(jnp.float32).min

State = Any
"""A pytree of small arrays that a method carries from step to step."""


class Seen(NamedTuple):
    """What a step has found of its T tasks, over all devices.

    A method is given the plain losses: ``fixed``, what the user asks for, multiplies what it
    makes of them, so that no method can undo it.

    Attributes:
        fixed: float32 [T], the user's weights; a task of weight 0 is out of the method.
        sums: float32 [T], the losses in nats, summed over the labels of the task.
        counts: float32 [T], how many labels these are.
        gram: float32 [T, T], the inner products of the gradients of the tasks' mean losses with
            respect to what the method has ``compared``; 0 where that is nothing.
        key: A random key of the step, the same on every device.
    """

    fixed: jax.Array
    sums: jax.Array
    counts: jax.Array
    gram: jax.Array
    key: jax.Array

    @property
    def means(self) -> jax.Array:
        """The mean losses, float32 [T]; 0 where no text has a label."""
        return mean(self.sums, self.counts)

    @property
    def balanced(self) -> jax.Array:
        """The tasks that the method acts on, bool [T]."""
        return self.fixed > 0

    @property
    def present(self) -> jax.Array:
        """Those of them that have a label in this step, bool [T]."""
        return self.balanced & (self.counts > 0)

    @property
    def complete(self) -> jax.Array:
        """Whether the step tells how several tasks, all that are balanced, compare; bool."""
        return (self.present == self.balanced).all() & self.several

    @property
    def several(self) -> jax.Array:
        """Whether there is anything to balance; bool."""
        return self.balanced.sum() > 1


@dataclasses.dataclass(frozen=True)
class Weighting:
    """A method; hashable, for steps are compiled for it. The base weighs as the user does.

    Attributes:
        name: As of ``--weighting``.
        of_shared_only: Whether its weights are those of the gradients of shared parameters
            alone, and a head's gradient is left as it is.
        looks_again: Whether its update needs the losses after the step on the same batch.
        compares_gradients: Whether it acts on gradients of shared parameters.
    """

    name: ClassVar[str]
    of_shared_only: ClassVar[bool] = False
    looks_again: ClassVar[bool] = False
    compares_gradients: ClassVar[bool] = False

    @classmethod
    def of_epochs(cls, steps_per_epoch: int) -> Self:
        """Returns the method for a phase whose epochs have so many steps."""
        del steps_per_epoch
        return cls()

    @property
    def idle_steps(self) -> int:
        """Steps of a phase before it can weigh the tasks differently from how the user does."""
        return 0

    def init(self, tasks: int) -> State:
        """The state before the first step of a phase."""
        del tasks
        return ()

    def compared(self, shared: Params) -> Params:
        """The part of the trainable shared parameters whose task gradients it compares."""
        del shared
        return {}

    def weights(self, state: State, seen: Seen) -> jax.Array:
        """float32 [T], what the tasks' mean losses, or their gradients, are multiplied by."""
        del state
        return seen.fixed

    def update(self, state: State, seen: Seen, after: jax.Array) -> State:
        """The state for the next step.

        Args:
            state: That of this step.
            seen: What this step has found.
            after: float32 [T], ``sums`` with the parameters after the step; with those before
                it unless the method ``looks_again``.
        """
        del seen, after
        return state


def mean(sums: jax.Array, counts: jax.Array) -> jax.Array:
    """Elementwise, 0 where nothing has been counted."""
    return sums / jnp.maximum(counts, 1.0)


def softmax_over(tasks: jax.Array, logits: jax.Array) -> jax.Array:
    """float32 [T], the softmax over some of the tasks, bool [T], and 0 for the others."""
    # No infinities, whose difference is not a number where there is no task.
    return jnp.where(tasks, jax.nn.softmax(jnp.where(tasks, logits, _LEAST)), 0.0)


def kept_unless(there: jax.Array, new: State, old: State) -> State:
    """``new`` where ``there``, a bool scalar, is true, else ``old``."""
    return jax.tree.map(lambda a, b: jnp.where(there, a, b), new, old)


def descend(
    optimizer: optax.GradientTransformation, gradient: jax.Array, state: Any, values: jax.Array
) -> tuple[jax.Array, Any]:
    """``values`` and the optimizer's state after an update."""
    updates, state = optimizer.update(gradient, state, values)
    return values + jnp.asarray(updates), state
