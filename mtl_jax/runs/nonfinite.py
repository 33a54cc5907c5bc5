"""What to do about a step that is not finite: keep its batch, find the texts at fault."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtl_jax.core import distributed
from mtl_jax.core.atomic_write import atomic_write
from mtl_jax.core.errors import SharedError, UserError
from mtl_jax.data.batches import HostBatch, TextSet, make_batch
from mtl_jax.data.kinds import blank, has_label
from mtl_jax.data.packing.plan import Layout, Placement
from mtl_jax.data.texts import take
from mtl_jax.freezing.partition import Params
from mtl_jax.models.multitask import Loss, MultiTaskModule
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.inputs import Split
from mtl_jax.training.kinds.base import Metrics
from mtl_jax.training.kinds.registry import kind_of
from mtl_jax.training.step import eval_step

FOLDER = "nonfinite"

# Rows of a batch of texts that are looked at one by one.
_ROWS = 32
# Texts of a split that are looked at, and those that a message names, with so many characters.
_MOST, _NAMED, _WIDTH = 256, 3, 60


def keep(folder: Path, run: PhaseRun, step: int, batch: HostBatch) -> str:
    """Keeps the batch of a step that is not finite, as one ``.npz`` in the folder of its run.

    Its arrays are those of the batch, as the step saw them: ids, positions and segments, or what
    frozen layers made of them, with each task's labels; ``example`` says which of the training
    texts is where, and ``texts`` are these, row by row.

    Args:
        folder: The run's.
        run: The run, in the phase of the step.
        step: The step of the run, from 1.
        batch: The batch.

    Returns:
        The texts and where the batch is, or why it is not, in words that follow the step's.
    """
    # Of several processes each keeps the rows that it gave.
    split, example = run.training, batch["example"][run.own_rows]
    arrays = batch | {"example": example}
    if split.texts.pooled is not None:
        # The vectors and the labels are on the device, and are not in the batch.
        arrays["pooled"] = split.texts.pooled[np.maximum(example, 0)]
        for name, labels in split.texts.labels.items():
            arrays[name] = blank(labels, example.shape)
            arrays[name][example >= 0] = labels[example[example >= 0]]
    texts = list(take(split.examples.texts, example[example >= 0]))
    arrays["texts"] = np.array(texts, np.str_)
    count = distributed.count()
    part = f"_process_{distributed.index()}_of_{count}" if count > 1 else ""
    path = folder / FOLDER / f"step_{step}{part}.npz"
    try:
        # None leaves, and ends the run by that, while another one still writes.
        distributed.call_on_all(functools.partial(_write, path, arrays))
    except UserError as error:
        return f"whose batch could not be kept ({error}){_named(texts)}"
    return f"whose batch is kept in {path}{_named(texts)}"


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise UserError(error.strerror or str(error)) from error


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What becomes of n texts, each alone in its row and without dropout.

    In a row of several a value that is not finite spoils the neighbours: attention gives it
    the weight 0, and 0 times it is not a number.

    Attributes:
        losses: Per task float32 [n]; of a text without a label they mean nothing.
        finite: Per task bool [n]: whether the logits and, where there is a label, the loss
            are finite.
    """

    losses: Mapping[str, np.ndarray]
    finite: Mapping[str, np.ndarray]

    @property
    def at_fault(self) -> np.ndarray:
        """Bool [n]: the texts with anything that is not finite."""
        return ~np.logical_and.reduce(list(self.finite.values()))


def verdicts(
    logits: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    own_losses: Mapping[str, Loss],
) -> Verdicts:
    """The verdicts on texts from their logits.

    Args:
        logits: Per task float32 [n, outputs].
        labels: Per task those of the texts, as they are trained on.
        own_losses: The loss of each task that has not the usual one of its kind.
    """
    losses, finite = {}, {}
    for task in logits:
        there = has_label(labels[task])
        loss: Any = own_losses.get(task, kind_of(labels[task]).loss)
        # Each text by itself: a loss gives a sum.
        losses[task] = np.asarray(jax.vmap(loss)(logits[task][:, None], labels[task][:, None])[0])
        finite[task] = np.isfinite(logits[task]).all(-1) & (np.isfinite(losses[task]) | ~there)
    return Verdicts(losses, finite)


def each_alone(model: MultiTaskModule, params: Params, texts: TextSet) -> Verdicts:
    """Looks at texts one by one, on one device.

    Args:
        model: The model, however it cuts its rows.
        params: One copy of its parameters.
        texts: n texts.
    """
    length = -(-int(texts.tokens.lengths.max()) // 8) * 8
    layout = Layout(_ROWS, ((1, length),), slots=1)
    step = jax.jit(functools.partial(eval_step, model.clone(states_depth=texts.depth, blocks=None)))
    found: dict[str, list[np.ndarray]] = {task: [] for task in model.tasks}
    for start in range(0, len(texts), _ROWS):
        here = np.arange(start, min(start + _ROWS, len(texts)))
        placement = Placement(here, here - start, np.zeros(len(here), np.int64))
        batch = make_batch(texts, layout, placement)
        del batch["example"]
        logits, _ = step(params, batch)
        for task in model.tasks:
            found[task].append(np.asarray(logits[task])[: len(here), 0])
    logits = {task: np.concatenate(parts) for task, parts in found.items()}
    return verdicts(logits, texts.labels, dict(model.losses))


def validate(run: PhaseRun, params: Params, step: int) -> tuple[Metrics, dict[str, np.ndarray]]:
    """Measures on the validation split.

    Args:
        run: The run, in the phase of the step.
        params: One copy of all parameters.
        step: The step of the run after which they are.

    Returns:
        As of ``Evaluator.measure``.

    Raises:
        SharedError: A loss is not finite; it names the first texts at fault.
    """
    split, evaluator = run.split("validation"), run.evaluator
    placed = evaluator.runner.replicate(params)
    metrics, logits = evaluator.measure(placed, split, run.inputs.classes)
    for task in metrics:
        if not math.isfinite(metrics[task]["loss"] or 0.0):
            found = verdicts(logits, split.texts.labels, dict(evaluator.model.losses))
            suspects = np.flatnonzero(found.at_fault)[:_MOST]
            guilty = _guilty(evaluator.model, params, split.take(suspects))
            raise SharedError(
                f"the {task} loss on the validation split is not finite after step {step}"
                f"{_named(guilty)}: lower the learning rates; the last checkpoint is kept"
            )
    return metrics, logits


def _guilty(model: MultiTaskModule, params: Params, split: Split) -> list[str]:
    if not len(split.texts):
        return []
    at_fault = each_alone(model, params, split.texts).at_fault
    return [split.examples.texts[i] for i in np.flatnonzero(at_fault).tolist()]


def _named(texts: list[str]) -> str:
    if not texts:
        return ""
    shown = [f"{text[:_WIDTH]!r}{' ...' * (len(text) > _WIDTH)}" for text in texts[:_NAMED]]
    others = " and others" if len(texts) > _NAMED else ""
    return f", that of {', '.join(shown)}{others}"
