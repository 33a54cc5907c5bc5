"""The gradient of a step whose losses a method weighs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.freezing.partition import Params
from mtl_jax.training.weighting.base import Seen, State, Weighting

# What the tasks share; the rest are heads.
SHARED = "backbone"


def weighted_gradient(
    method: Weighting,
    state: State,
    loss_sums: Callable[[Params], jax.Array],
    trainable: Params,
    fixed: jax.Array,
    counts: jax.Array,
    key: jax.Array,
    reduce: Callable[[Any], Any],
) -> tuple[Params, Seen, jax.Array]:
    """One forward pass, then one backward pass, or one for each task that is compared.

    What is not linear, as a norm, is made of sums over all devices.

    Args:
        method: The method.
        state: Its state.
        loss_sums: Trainable parameters to the losses on this device, float32 [T], summed over
            the labels of the task.
        trainable: The trainable partition of the parameters.
        fixed: See ``Seen``.
        counts: See ``Seen``.
        key: See ``Seen``.
        reduce: Sums a tree over the devices.

    Returns:
        The gradient, what the step has found, and the weights it is made with, float32 [T].
    """
    sums, pull = jax.vjp(loss_sums, trainable)
    tasks = len(fixed)
    seen = Seen(fixed, reduce(sums), counts, jnp.zeros((tasks, tasks)), key)

    def gradient_of(weights: jax.Array) -> Params:
        (gradient,) = pull(weights / jnp.maximum(counts, 1.0))
        return reduce(gradient)

    if not jax.tree.leaves(method.compared(trainable.get(SHARED, {}))):
        weights = _weights(method, state, seen)
        return gradient_of(fixed if method.of_shared_only else weights), seen, weights
    of_tasks = [gradient_of(task) for task in jnp.eye(tasks)]
    seen = seen._replace(gram=_gram([method.compared(each[SHARED]) for each in of_tasks]))
    weights = _weights(method, state, seen)
    of_heads = fixed if method.of_shared_only else weights
    gradient = {
        name: _mixed(weights if name == SHARED else of_heads, [each[name] for each in of_tasks])
        for name in trainable
    }
    return gradient, seen, weights


def _weights(method: Weighting, state: State, seen: Seen) -> jax.Array:
    # A single task is not to be weighed against anything.
    return jnp.where(seen.several, method.weights(state, seen), seen.fixed)


def _gram(gradients: Sequence[Params]) -> jax.Array:
    """float32 [T, T], the inner products of T trees."""

    def of_leaf(*leaves: jax.Array) -> jax.Array:
        rows = jnp.stack([leaf.reshape(-1) for leaf in leaves])
        return jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(of_leaf, *gradients)), jnp.zeros(()))


def _mixed(weights: jax.Array, gradients: Sequence[Params]) -> Params:
    def of_leaf(*leaves: jax.Array) -> jax.Array:
        return jnp.asarray(sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)))

    return jax.tree.map(of_leaf, *gradients)
