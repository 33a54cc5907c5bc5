"""One pure training step and one pure evaluation step; ``runners`` runs them on devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from mtl_jax.data.kinds import blank_value, has_label
from mtl_jax.data.soft_labels import is_soft, soft_name
from mtl_jax.freezing.partition import Params, Partition
from mtl_jax.models.multitask import Batch, MultiTaskModule, looked_up
from mtl_jax.training.collectives import summed
from mtl_jax.training.kinds.registry import kind_of
from mtl_jax.training.kinds.single_label import CrossEntropy
from mtl_jax.training.program import Numbers, Program, Template, TrainState
from mtl_jax.training.weighting.gradient import weighted_gradient
from mtl_jax.training.weighting.methods.fixed import Fixed

# Beyond any device's index: what is folded into the key of a step for its weighting.
_WEIGHTING = 2**32 - 1


def _losses(
    model: MultiTaskModule, logits: Mapping[str, jax.Array], batch: Batch
) -> dict[str, tuple[Any, Any]]:
    own, found = dict(model.losses), {}
    for task, of_task in logits.items():
        labels, soft = batch[task], batch.get(soft_name(task))
        if soft is None:
            found[task] = own.get(task, kind_of(labels).loss)(of_task, labels)
        else:
            loss: Any = own.get(task, CrossEntropy())
            found[task] = loss(of_task, labels, soft)
    return found


def _two_passes(
    model: MultiTaskModule,
    first: Mapping[str, jax.Array],
    second: Mapping[str, jax.Array],
    batch: Batch,
    weight: float,
) -> dict[str, tuple[Any, Any]]:
    """The losses of R-Drop: the mean of those of two passes, and how far these are apart.

    Source: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks"
    (arXiv:2106.14448), equation 3 divided by 2, as the code of its authors has it, so that the
    loss is of the size of one pass's; ``weight`` is the alpha of that code. It needs two classes at
    least: of a regression there is the mean alone.

    Args:
        model: The model.
        first: Per task the logits of a pass.
        second: Those of another one, with other dropout.
        batch: What both are of.
        weight: Of the divergence.
    """
    once, again = (_losses(model, logits, batch) for logits in (first, second))
    found = {}
    for task, (total, count) in once.items():
        there = has_label(batch[task])
        apart = kind_of(batch[task]).apart(first[task], second[task])
        total = (total + again[task][0]) / 2 + weight * jnp.where(there, apart, 0.0).sum()
        found[task] = total, count
    return found


def _identity(tree: Any) -> Any:
    return tree


def _gathering(function: Callable[..., Any], sharding: NamedSharding | None) -> Callable[..., Any]:
    """A function whose first argument each device gets whole, from the parts that all keep.

    The backward pass gets it again, so that no device has all of it from one pass to the other.
    """
    if sharding is None:
        return function

    def gathered(params: Params, *rest: Any) -> Any:
        return function(jax.lax.with_sharding_constraint(params, sharding), *rest)

    def is_kept(primitive: Any, *_: Any, **__: Any) -> bool:
        return str(primitive) != "sharding_constraint"

    return jax.checkpoint(gathered, policy=is_kept)


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
    the labels are spread unevenly. Where a batch has distributions for a task its loss is with
    these, and with ``r_drop`` it is that of ``_two_passes``. Any ``weighting`` but the fixed one
    makes weights of its own from what it sees in the step, and from its state.

    Args:
        program: Model, optimizer and weights; static.
        state: Donated by the wrappers.
        frozen: The frozen partition of the parameters.
        batch: See ``model.Batch``; this device's rows.
        axis_name: The axis of the devices to reduce over; None where the compiler sees the whole
            batch.

    Returns:
        The next state, and ``{"loss": {task: (sum, count)}, "grad_norm": norm before
        clipping}``, the same on every device; with ``"task_weights": {task: weight}`` where
        these are not fixed.
    """
    tasks = program.model.tasks
    reduce: Callable[[Any], Any] = _identity
    if axis_name:
        reduce = functools.partial(summed, axis_name=axis_name, looked_up=looked_up(batch))
    of_step = rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    if axis_name:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
    counts = reduce({task: has_label(batch[task]).sum().astype(jnp.float32) for task in tasks})

    targets = {task: batch[key] for task in tasks if (key := f"target_{task}") in batch}
    kinds = {task: kind_of(batch[task]) for task in tasks}
    held = reduce(
        {task: kinds[task].are_there(of).sum().astype(jnp.float32) for task, of in targets.items()}
    )

    @functools.partial(_gathering, sharding=program.gathered)
    def logits_of(params: Params, part: Batch, key: jax.Array) -> dict[str, jax.Array]:
        logits = program.model.apply(
            {"params": params},
            part,
            train=True,
            frozen_depth=program.frozen_depth,
            rngs={"dropout": key},
        )
        return cast("dict[str, jax.Array]", logits)

    def losses_of(
        params: Params, part: Batch, key: jax.Array
    ) -> tuple[dict[str, tuple[Any, Any]], dict[str, jax.Array]]:
        """The losses of the tasks, and the logits of the one pass, or the first."""
        logits = logits_of(params, part, key)
        if not program.r_drop:
            return _losses(program.model, logits, part), logits
        again = logits_of(params, part, jax.random.fold_in(key, 1))
        return _two_passes(program.model, logits, again, part, program.r_drop), logits

    def holding(logits: Mapping[str, jax.Array], part: Batch) -> Any:
        """The term that holds frozen heads' predictions, a mean over texts."""
        terms = (
            kinds[task].hold(logits[task], part[f"target_{task}"]) / jnp.maximum(held[task], 1.0)
            for task in targets
        )
        return program.hold_weight * sum(terms)

    def loss_fn(trainable: Params, part: Batch, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        losses, logits = losses_of(Partition.merge(trainable, frozen), part, key)
        total = sum(
            weight * losses[task][0] / jnp.maximum(counts[task], 1.0)
            for task, weight in zip(tasks, program.task_weights, strict=True)
        )
        return jnp.asarray(total + holding(logits, part) if targets else total), losses

    # What is differentiated as a whole would else keep the activations of every micro-batch.
    again = jax.checkpoint if program.parts.number > 1 else _identity

    def loss_sums(trainable: Params) -> jax.Array:
        @again
        def of_part(part: Batch, key: jax.Array) -> jax.Array:
            losses, _ = losses_of(Partition.merge(trainable, frozen), part, key)
            return jnp.stack([losses[task][0] for task in tasks])

        return program.parts.summed(of_part, batch, rng)

    def gradient_of(loss: Callable[..., Any], *, has_aux: bool = False) -> Any:
        """That of a sum over texts, which is complete when the devices' are added up."""
        of_part = functools.partial(jax.grad(loss, has_aux=has_aux), state.trainable)
        return reduce(program.parts.summed(of_part, batch, rng))

    def updated(gradient: Params) -> TrainState:
        updates, opt_state = program.optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        return state.replace(step=state.step + 1, trainable=trainable, opt_state=opt_state)

    method = program.weighting
    if isinstance(method, Fixed):
        gradient, losses = gradient_of(loss_fn, has_aux=True)
        return updated(gradient), {"loss": losses, "grad_norm": optax.tree.norm(gradient)}
    gradient, seen, weights = weighted_gradient(
        method,
        state.weighting,
        loss_sums,
        state.trainable,
        fixed=jnp.stack([jnp.asarray(w, jnp.float32) for w in program.task_weights]),
        counts=jnp.stack([counts[task] for task in tasks]),
        key=jax.random.fold_in(of_step, _WEIGHTING),
        reduce=reduce,
    )
    if targets:
        hold = gradient_of(
            lambda p, part, key: holding(logits_of(Partition.merge(p, frozen), part, key), part)
        )
        gradient = optax.tree.add(gradient, hold)
    after = updated(gradient)
    sums = reduce(loss_sums(after.trainable)) if method.looks_again else seen.sums
    after = after.replace(weighting=method.update(state.weighting, seen, sums))
    metrics = {
        "loss": {task: (seen.sums[i], counts[task]) for i, task in enumerate(tasks)},
        "grad_norm": optax.tree.norm(gradient),
        "task_weights": {task: weights[i] for i, task in enumerate(tasks)},
    }
    return after, metrics


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
        vectors: ``pooled``, float32 [n, hidden], per task the labels of n texts, and what
            ``TextSet.beside`` has of them.
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
        tasks = program.model.tasks
        metrics = {"loss": dict.fromkeys(tasks, (nothing, nothing)), "grad_norm": nothing}
        if not isinstance(program.weighting, Fixed):
            metrics["task_weights"] = dict.fromkeys(tasks, nothing)
        return state, metrics

    def step(state: TrainState, example: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        there = (example >= 0).any()
        if axis_name:
            there = jax.lax.pmax(there.astype(jnp.int32), axis_name) > 0
        return jax.lax.cond(there, update, skip, state, example)

    return jax.lax.scan(step, state, examples)


def train_step_with(
    template: Template,
    state: TrainState,
    frozen: Params,
    numbers: Numbers,
    batch: Batch,
    *,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """``train_step`` of the program of a template and numbers."""
    return train_step(template.program(numbers), state, frozen, batch, axis_name=axis_name)


def scanned_steps_with(
    template: Template,
    state: TrainState,
    frozen: Params,
    numbers: Numbers,
    vectors: Mapping[str, jax.Array],
    batches: Mapping[str, jax.Array],
    *,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """``scanned_steps`` of the program of a template and numbers."""
    program = template.program(numbers)
    return scanned_steps(program, state, frozen, vectors, batches, axis_name=axis_name)


def take(vectors: Mapping[str, jax.Array], example: jax.Array) -> Batch:
    """The batch of the vectors and labels that ``example``, int32 [rows, slots], names."""
    batch: dict[str, jax.Array] = {"pooled": vectors["pooled"][jnp.maximum(example, 0)]}
    for name, values in vectors.items():
        if name != "pooled":
            there = (example >= 0).reshape(example.shape + (1,) * (values.ndim - 1))
            empty = 0 if is_soft(name) else blank_value(values)
            batch[name] = jnp.where(there, values[example], empty)
    return batch


def eval_step(
    model: MultiTaskModule, params: Params, batch: Batch, *, axis_name: str | None = None
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Pure evaluation, without dropout.

    Returns:
        The logits of this device's rows, {task: [rows, slots, classes]}, and the losses,
        {task: (sum, count)}, reduced over ``axis_name``.
    """
    logits = cast("dict[str, jax.Array]", model.apply({"params": params}, batch))
    losses = _losses(model, logits, batch)
    return logits, jax.lax.psum(losses, axis_name) if axis_name else losses


def states_step(
    prefix: tuple[MultiTaskModule, int],
    params: Params,
    batch: Batch,
    *,
    axis_name: str | None = None,
) -> jax.Array:
    """The token states of this device's rows at a depth, [rows, length, hidden].

    ``prefix`` is the model and the depth; see ``MultiTaskModule.states``.
    """
    del axis_name  # every row is computed on its own
    model, depth = prefix
    states = model.apply({"params": params}, batch, depth, method="states")
    return cast("jax.Array", states)


def pooled_step(
    model: MultiTaskModule, params: Params, batch: Batch, *, axis_name: str | None = None
) -> jax.Array:
    """The pooled vectors of this device's rows, float32 [rows, slots, hidden]."""
    del axis_name  # every row is computed on its own
    return cast("jax.Array", model.apply({"params": params}, batch, method="pooled"))


def pooled_at_step(
    prefix: tuple[MultiTaskModule, int],
    params: Params,
    batch: Batch,
    *,
    axis_name: str | None = None,
) -> jax.Array:
    """The same of the token states at a depth: ``prefix`` is as of ``states_step``."""
    del axis_name  # every row is computed on its own
    model, depth = prefix
    vectors = model.apply({"params": params}, batch, depth, method="pooled_at")
    return cast("jax.Array", vectors)
