"""A user's own heads, losses and metrics, from the import paths in a run's settings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mtl_jax.config.extensions import paths_by_name
from mtl_jax.core.errors import UserError, first_line
from mtl_jax.core.imported import import_function, import_object
from mtl_jax.models.multitask import Head, Loss

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Labels and predicted classes, int [n], of the texts with a label, to a number."""


# Labels and predicted classes that a metric is tried on before anything is trained.
_TRIED = (np.array([0, 1, 1]), np.array([0, 1, 0]))

BUILT_IN = ("accuracy", "macro_f1", "weighted_f1_by_source", "examples", "loss")
"""What every task is measured by."""


@dataclasses.dataclass(frozen=True)
class Extensions:
    """What stands in the place of the built-in heads and losses, and beside the metrics.

    Attributes:
        heads: ``(task, head)``.
        losses: ``(task, loss)``.
        metrics: ``(name, metric)``.
    """

    heads: tuple[tuple[str, Head], ...] = ()
    losses: tuple[tuple[str, Loss], ...] = ()
    metrics: tuple[tuple[str, Metric], ...] = ()


def load_extensions(
    heads: Sequence[str],
    loss: Sequence[str],
    metrics: Sequence[str],
    classes: Mapping[str, Sequence[str]],
    hidden_size: int,
) -> Extensions:
    """Imports what some settings name.

    Args:
        heads: As of ``TrainConfig``.
        loss: As of ``TrainConfig``.
        metrics: As of ``TrainConfig``.
        classes: Per task the names of its classes.
        hidden_size: Length of a pooled vector.

    Raises:
        UserError: Something can't be imported, or is not what it is named for.
    """
    tasks = tuple(classes)
    own_heads, own_losses, own_metrics = [], [], []
    for task, path in paths_by_name("--heads", heads, tasks).items():
        made = _head(import_object(path, f"--heads {task}"), len(classes[task]), task)
        _check_head(made, task, len(classes[task]), hidden_size)
        own_heads.append((task, Head(made)))
    for task, path in paths_by_name("--loss", loss, tasks, every=True).items():
        function = import_function(path, f"--loss {task}")
        _check_loss(function, f"--loss {task} {path}", len(classes[task]))
        own_losses.append((task, function))
    for name, path in paths_by_name("--metrics", metrics, None).items():
        if name in BUILT_IN:
            raise UserError(f"--metrics {name} is there already: call yours something else")
        metric = import_function(path, f"--metrics {name}")
        own_metrics.append((name, _named_in_errors(metric, f"--metrics {name} {path}")))
        _ = own_metrics[-1][1](*_TRIED)
    return Extensions(tuple(own_heads), tuple(own_losses), tuple(own_metrics))


@functools.cache
def _named_in_errors(metric: Metric, what: str) -> Metric:
    """The metric, whose failure is the user's to mend; the same one for equal arguments."""

    def measured(labels: np.ndarray, predicted: np.ndarray) -> float:
        try:
            return float(metric(labels, predicted))
        except Exception as error:
            raise UserError(
                f"{what} makes no number of {len(labels)} labels and as many predicted classes "
                f"({type(error).__name__}: {first_line(error)}): correct it"
            ) from error

    return measured


def _check_loss(loss: Loss, what: str, classes: int) -> None:
    logits = jax.ShapeDtypeStruct((2, 3, classes), np.float32)
    labels = jax.ShapeDtypeStruct((2, 3), np.int32)
    try:
        made = jax.eval_shape(loss, logits, labels)
    except Exception as error:
        raise UserError(
            f"{what} can't be called with logits, float32 [..., {classes}], and labels, int32 "
            f"[...] ({first_line(error)}): correct it"
        ) from error
    shapes = [getattr(each, "shape", None) for each in jax.tree.leaves(made)]
    if not isinstance(made, tuple) or shapes != [(), ()]:
        raise UserError(
            f"{what} returns {made}: let it return the sum of the losses and the number of labels, "
            "two scalars"
        )


def _head(found: Any, classes: int, task: str) -> nn.Module:
    """The module that an import path names: itself, or what it makes for so many classes."""
    if isinstance(found, nn.Module):
        return found
    try:
        if isinstance(found, type) and issubclass(found, nn.Module):
            fields = {field.name for field in dataclasses.fields(found)}
            made = found(**{name: classes for name in ("classes",) if name in fields})
        else:
            made = found(classes) if callable(found) else found
    except TypeError as error:
        raise UserError(
            f"--heads {task}: {getattr(found, '__name__', found)} can't be made ({error}): give it "
            "a field classes, or defaults"
        ) from error
    if not isinstance(made, nn.Module):
        raise UserError(f"--heads {task}: {found!r} is no Flax module and makes none: name one")
    return made


def _check_head(head: nn.Module, task: str, classes: int, hidden_size: int) -> None:
    vectors = jax.ShapeDtypeStruct((2, 3, hidden_size), np.float32)
    init = functools.partial(head.init_with_output, jax.random.key(0))
    try:
        logits, _ = jax.eval_shape(init, vectors)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--heads {task}: {type(head).__name__} can't be called with pooled vectors, float32 "
            f"[..., {hidden_size}] ({reason}): correct it"
        ) from error
    if getattr(logits, "shape", None) != (2, 3, classes):
        raise UserError(
            f"--heads {task}: {type(head).__name__} makes {getattr(logits, 'shape', logits)} of "
            f"vectors [2, 3, {hidden_size}], and the task has {classes} classes: make it "
            f"[2, 3, {classes}]"
        )
