"""One pure training step and one pure evaluation step; ``parallel`` runs them on devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mtl_jax.config import TASKS
from mtl_jax.freeze import Freeze, Params
from mtl_jax.losses import masked_cross_entropy
from mtl_jax.model import Batch, MultiTaskModel


class TrainState(flax.struct.PyTreeNode):
    """What a step changes. The frozen leaves are not in it.

    Attributes:
        step: Steps done, int32 scalar.
        trainable: The trainable partition of the parameters.
        opt_state: Its optimizer state.
        rng: Key that dropout's keys are folded from.
    """

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState
    rng: jax.Array


def stream(seed: int, use: Literal["heads", "dropout"]) -> jax.Array:
    """The key of one of a run's uses of chance, independent of the others."""
    return jax.random.fold_in(jax.random.key(seed), ("heads", "dropout").index(use))


@dataclasses.dataclass(frozen=True)
class Program:
    """What the steps are compiled for."""

    model: MultiTaskModel
    optimizer: optax.GradientTransformation
    frozen_depth: int
    task_weights: tuple[float, float]

    def init(self, trainable: Params, seed: int) -> TrainState:
        """The state before the first step."""
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            opt_state=self.optimizer.init(trainable),
            rng=jax.random.key_data(stream(seed, "dropout")),
        )


def _losses(logits: Mapping[str, jax.Array], batch: Batch) -> dict[str, tuple[Any, Any]]:
    return {task: masked_cross_entropy(logits[task], batch[task]) for task in TASKS}


def _identity(tree: Any) -> Any:
    return tree


def train_step(
    program: Program,
    state: TrainState,
    frozen: Params,
    batch: Batch,
    *,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One update. Pure; differentiates the trainable partition only.

    The loss is the weighted sum over tasks of the mean over that task's labels, counted
    over all devices before the division: a mean of per-device means would be wrong where
    the labels are spread unevenly.

    Args:
        program: Model, optimizer and weights; static.
        state: Donated by the wrappers.
        frozen: The frozen partition of the parameters.
        batch: See ``model.Batch``; this device's rows.
        axis_name: The ``pmap`` axis to reduce over; None where the compiler sees the whole
            batch.

    Returns:
        The next state, and ``{"loss": {task: (sum, count)}, "grad_norm": norm before
        clipping}``, the same on every device.
    """
    reduce = functools.partial(jax.lax.psum, axis_name=axis_name) if axis_name else _identity
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    if axis_name:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
    counts = reduce({task: (batch[task] >= 0).sum().astype(jnp.float32) for task in TASKS})

    def loss_fn(trainable: Params) -> tuple[jax.Array, dict[str, Any]]:
        logits = program.model.apply(
            {"params": Freeze.merge(trainable, frozen)},
            batch,
            train=True,
            frozen_depth=program.frozen_depth,
            rngs={"dropout": rng},
        )
        losses = _losses(cast("dict[str, jax.Array]", logits), batch)
        total = sum(
            weight * losses[task][0] / jnp.maximum(counts[task], 1.0)
            for task, weight in zip(TASKS, program.task_weights, strict=True)
        )
        return jnp.asarray(total), losses

    gradient, losses = reduce(jax.grad(loss_fn, has_aux=True)(state.trainable))
    updates, opt_state = program.optimizer.update(gradient, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    state = state.replace(step=state.step + 1, trainable=trainable, opt_state=opt_state)
    return state, {"loss": losses, "grad_norm": optax.tree.norm(gradient)}


def scanned_steps(
    program: Program,
    state: TrainState,
    frozen: Params,
    vectors: Mapping[str, jax.Array],
    batches: Mapping[str, jax.Array],
    *,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Many updates of the heads in one program, on vectors that stay on the device.

    Args:
        program: As of ``train_step``.
        state: As of ``train_step``.
        frozen: As of ``train_step``.
        vectors: ``pooled``, float32 [n, hidden], and per task int32 [n] labels.
        batches: ``example``, int32 [rows, steps, slots]: which vector, or -1. A step without
            any is passed over.
        axis_name: As of ``train_step``.

    Returns:
        The state after the last step, and the metrics of ``train_step``, each [steps].
    """
    examples = jnp.moveaxis(batches["example"], 1, 0)

    def update(state: TrainState, example: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        batch = take(vectors, example)
        return train_step(program, state, frozen, batch, axis_name=axis_name)

    def skip(state: TrainState, example: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        nothing = jnp.zeros(())
        return state, {"loss": dict.fromkeys(TASKS, (nothing, nothing)), "grad_norm": nothing}

    def step(state: TrainState, example: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        there = (example >= 0).any()
        if axis_name:
            there = jax.lax.pmax(there.astype(jnp.int32), axis_name) > 0
        return jax.lax.cond(there, update, skip, state, example)

    return jax.lax.scan(step, state, examples)


def take(vectors: Mapping[str, jax.Array], example: jax.Array) -> Batch:
    """The batch of the vectors and labels that ``example``, int32 [rows, slots], names."""
    batch: dict[str, jax.Array] = {"pooled": vectors["pooled"][jnp.maximum(example, 0)]}
    for task in TASKS:
        batch[task] = jnp.where(example >= 0, vectors[task][example], -1)
    return batch


def eval_step(
    model: MultiTaskModel, params: Params, batch: Batch, *, axis_name: str | None = None
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Pure evaluation, without dropout.

    Returns:
        The logits of this device's rows, {task: [rows, slots, classes]}, and the losses,
        {task: (sum, count)}, reduced over ``axis_name``.
    """
    logits = cast("dict[str, jax.Array]", model.apply({"params": params}, batch))
    losses = _losses(logits, batch)
    return logits, jax.lax.psum(losses, axis_name) if axis_name else losses


def states_step(
    prefix: tuple[MultiTaskModel, int],
    params: Params,
    batch: Batch,
    *,
    axis_name: str | None = None,
) -> jax.Array:
    """The token states of this device's rows at a depth, [rows, length, hidden].

    ``prefix`` is the model and the depth; see ``MultiTaskModel.states``.
    """
    del axis_name  # every row is computed on its own
    model, depth = prefix
    states = model.apply({"params": params}, batch, depth, method="states")
    return cast("jax.Array", states)


def pooled_step(
    model: MultiTaskModel, params: Params, batch: Batch, *, axis_name: str | None = None
) -> jax.Array:
    """The pooled vectors of this device's rows, float32 [rows, slots, hidden]."""
    del axis_name  # every row is computed on its own
    return cast("jax.Array", model.apply({"params": params}, batch, method="pooled"))
