"""Runs the model on a batch that was kept because its step was not finite."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtl_jax.config.train import TASKS
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError
from mtl_jax.core.paths import expanded
from mtl_jax.data.batches import TextSet
from mtl_jax.freezing.partition import Freeze, Params, digest
from mtl_jax.models import pretrained
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.runs.checkpoints.reader import Saved
from mtl_jax.runs.kept_batch import KeptBatch, newest_batch, read_batch
from mtl_jax.runs.nonfinite import FOLDER, each_alone
from mtl_jax.runs.run_config import identity, model_spec, read_record
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.runners import AXIS
from mtl_jax.training.step import Program, stream, train_step


def replay(folder: str | Path, file: str | Path | None = None) -> Iterator[dict[str, Any]]:
    """Runs the model on a kept batch, with the newest parameters of the run from before its step.

    Args:
        folder: The run's.
        file: The batch; by default the one that the run has kept last.

    Yields:
        Per text ``{"text", "example", task: {"loss", "finite"} ..., "at_fault"}``, of the text
        alone in its row, from its tokens on and without dropout; ``loss`` is in nats, None
        where it is not finite or there is no label. Then ``{"step", "parameters_after",
        "at_fault", "loss", "total", "gradient_norm"}`` of the batch as the step saw it, with
        the step's dropout: the mean loss of each task, and their sum by the fixed weights.

    Raises:
        UserError: There is no such run or batch, or nothing left of its parameters.
    """
    workdir = Workdir(folder)
    record = read_record(workdir, "name the one that kept the batch")
    path = newest_batch(workdir.path / FOLDER) if file is None else expanded(file)
    if path is None:
        raise UserError(f"{folder} has kept no batch: all its steps have been finite")
    kept = read_batch(path)
    after, params = _parameters(workdir, record, kept.step)
    nearer = "" if after == kept.step - 1 else " (train --checkpoint-every 1 leaves nearer ones)"
    say(f"{path}: step {kept.step}, with the parameters after step {after}{nearer}")
    model, at_fault = _model(record), 0
    for line in _lines(kept, model, params):
        at_fault += line["at_fault"]
        yield line
    whole = _whole(model, params, record, kept)
    yield {"step": kept.step, "parameters_after": after, "at_fault": at_fault, **whole}


def _parameters(workdir: Workdir, record: dict[str, Any], step: int) -> tuple[int, Params]:
    """The newest that there are from before a step: a checkpoint's, else those of the start."""
    saved = Saved(workdir.checkpoints, identity(record))
    if earlier := [known for known in saved.steps if known < step]:
        return earlier[-1], saved.restore_params(earlier[-1])
    settings = record["settings"]
    name, pooling = settings["backbone"], record["pooling"]
    _, backbone = pretrained.load_backbone(name)
    backbone = pretrained.without_unused_pooler(backbone, pooling, name)
    if digest(backbone) != record["weights_sha256"]:
        raise UserError(
            f"{workdir.path} has no checkpoint from before step {step}, and backbone {name} has "
            "other weights than when it was trained: bring those back"
        )
    heads = _model(record).init_heads(stream(settings["seed"], "heads"))
    return 0, {"backbone": backbone, **heads}


def _model(record: dict[str, Any]) -> MultiTaskModel:
    max_length = record["settings"]["data"]["max_length"]
    return model_spec(record, max_length=max_length, parallel="jit").model()


def _lines(kept: KeptBatch, model: MultiTaskModel, params: Params) -> Iterator[dict[str, Any]]:
    """What becomes of each text, from its tokens on."""
    batch, there = kept.batch, kept.batch["example"] >= 0
    labels = {task: batch[task][there] for task in TASKS}
    found = each_alone(model, params, TextSet(kept.tokens, labels))
    for i, (text, example) in enumerate(zip(kept.texts, batch["example"][there], strict=True)):
        line: dict[str, Any] = {"text": text, "example": int(example)}
        for task in TASKS:
            loss = _number(found.losses[task][i]) if labels[task][i] >= 0 else None
            line[task] = {"loss": loss, "finite": bool(found.finite[task][i])}
        yield line | {"at_fault": bool(found.at_fault[i])}


def _whole(
    model: MultiTaskModel, params: Params, record: dict[str, Any], kept: KeptBatch
) -> dict[str, Any]:
    """The losses and the gradient norm of a batch as its step computes them."""
    settings, phase = record["settings"], record["phases"][kept.phase]
    freeze = Freeze.from_rules(params, [tuple(rule) for rule in phase["rules"]])
    first, second = phase["task_weights"] or (1.0, 1.0)
    program = Program(
        model.clone(
            states_depth=kept.depth,
            blocks=kept.blocks,
            remat=settings["remat"],
            scan_layers=settings["scan_layers"],
        ),
        # Nothing comes of the update.
        optax.identity(),
        freeze.depth(model.config.num_hidden_layers),
        (first, second),
    )
    trainable, frozen = freeze.split(params)
    state = program.init(trainable, kept.seed).replace(step=jnp.int32(kept.step - 1))
    batch = {name: array for name, array in kept.batch.items() if name != "example"}

    step = functools.partial(train_step, program)
    if kept.parts:
        batch = {k: array.reshape(kept.parts, -1, *array.shape[1:]) for k, array in batch.items()}
        step = functools.partial(step, axis_name=AXIS)
        step = jax.vmap(step, (None, None, 0), None, axis_name=AXIS)
    _, found = jax.jit(step)(state, frozen, batch)
    losses = {task: float(s) / max(float(n), 1.0) for task, (s, n) in found["loss"].items()}
    total = sum(
        weight * losses[task] for task, weight in zip(TASKS, program.task_weights, strict=True)
    )
    return {
        "loss": {task: _number(loss) for task, loss in losses.items()},
        "total": _number(total),
        "gradient_norm": _number(found["grad_norm"]),
    }


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
