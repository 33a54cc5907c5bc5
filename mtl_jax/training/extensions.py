"""A user's own heads, losses and metrics, from the import paths in a run's settings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import flax.linen as nn
import jax
import numpy as np

from mtl_jax.config.extensions import paths_by_name
from mtl_jax.config.tasks import Kind, Task
from mtl_jax.config.train import Settings
from mtl_jax.core.errors import UserError, first_line
from mtl_jax.core.imported import import_function, import_object
from mtl_jax.core.names import listed, quoted, shown
from mtl_jax.data.kinds import KINDS as LABELS
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.heads import MlpHead
from mtl_jax.models.multitask import Head, Loss
from mtl_jax.training.kinds.registry import KINDS


@dataclasses.dataclass(frozen=True)
class Metric:
    """Labels and predictions of the texts with a label, as ``TaskKind`` has them, to a number.

    Attributes:
        function: The user's.
        what: What it is called in an error.
        kinds: Of which kinds of tasks: those of the function's attribute ``kinds``, or all.
    """

    function: Callable[[np.ndarray, np.ndarray], Any]
    what: str
    kinds: tuple[Kind, ...]

    def __call__(self, labels: np.ndarray, predicted: np.ndarray) -> float:
        """Measures n of each.

        Raises:
            UserError: The function fails, or makes no number.
        """
        try:
            return float(self.function(labels, predicted))
        except Exception as error:
            values = "values" if np.issubdtype(labels.dtype, np.floating) else "classes"
            raise UserError(
                f"{self.what} makes no number of {len(labels)} labels and as many predicted "
                f"{values} ({type(error).__name__}: {first_line(error)}): correct it, or say with "
                "an attribute kinds which kinds of tasks it is for"
            ) from error


# Labels and predictions that a metric is tried on before anything is trained.
_TRIED: Mapping[Kind, tuple[np.ndarray, np.ndarray]] = {
    "single_label": (np.array([0, 1, 1]), np.array([0, 1, 0])),
    "multi_label": (
        np.array([[0, 1], [1, 1], [0, 0]], np.int8),
        np.array([[0, 1], [1, 0], [1, 0]], np.int8),
    ),
    "regression": (np.array([0.5, 1.0, 2.0]), np.array([0.0, 1.0, 1.5])),
}

BUILT_IN = (
    *("accuracy", "macro_f1", "weighted_f1_by_source", "examples", "loss"),
    *("subset_accuracy", "micro_f1", "hamming_loss"),
    *("r2", "rmse", "mae", "pearson", "spearman"),
)
"""What tasks are measured by."""


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

    def __add__(self, other: Extensions) -> Extensions:
        """Both, which are of different tasks."""
        return Extensions(
            self.heads + other.heads, self.losses + other.losses, self.metrics + other.metrics
        )


def load_extensions(
    heads: Sequence[str],
    loss: Sequence[str],
    metrics: Sequence[str],
    tasks: Mapping[str, Task],
    hidden_size: int,
) -> Extensions:
    """Imports what some settings name.

    Args:
        heads: As of ``TrainConfig``.
        loss: As of ``TrainConfig``.
        metrics: As of ``TrainConfig``.
        tasks: The tasks, by name.
        hidden_size: Length of a pooled vector.

    Raises:
        UserError: Something can't be imported, or is not what it is named for.
    """
    names = tuple(tasks)
    own_heads, own_losses, own_metrics = [], [], []
    for task, path in paths_by_name("--heads", heads, names).items():
        what = f"--heads {task}"
        found = import_object(path, what)
        own_heads.append((task, make_head(found, tasks[task].outputs, hidden_size, what)))
    for task, path in paths_by_name("--loss", loss, names, every=True).items():
        function = import_function(path, f"--loss {task}")
        check_loss(function, f"--loss {task} {path}", tasks[task])
        own_losses.append((task, function))
    for name, path in paths_by_name("--metrics", metrics, None).items():
        refuse_built_in(name, "--metrics")
        metric = import_function(path, f"--metrics {name}")
        measured = make_metric(metric, tasks.values(), f"--metrics {name} {path}")
        own_metrics.append((name, measured))
    return Extensions(tuple(own_heads), tuple(own_losses), tuple(own_metrics))


def built_in_parts(
    config: Settings,
    tasks: Mapping[str, Task],
    bert: EncoderConfig,
    class_weights: Mapping[str, Sequence[float]],
) -> Extensions:
    """The heads and losses that the settings ask for in the place of the usual ones.

    Args:
        config: The settings.
        tasks: The tasks, by name.
        bert: The backbone's configuration.
        class_weights: Per task the weights of its classes, of those that have some.
    """
    smoothing = config.smoothing
    heads = [
        (task, Head(MlpHead(bert, units, tasks[task].outputs)))
        for task, units in config.hidden_units.items()
    ]
    losses = []
    for name, task in tasks.items():
        weights, part = class_weights.get(name), smoothing.get(name, 0.0)
        if weights is not None or part:
            weights = None if weights is None else tuple(weights)
            losses.append((name, KINDS[task.kind].make_loss(task, weights, part)))
    return Extensions(tuple(heads), tuple(losses))


def class_weights_of(
    config: Settings, tasks: Mapping[str, Task], labels: Mapping[str, np.ndarray]
) -> dict[str, list[float]]:
    """The weights of the classes of each task that has some, from its training labels.

    Args:
        config: The settings.
        tasks: The tasks, by name.
        labels: Those of the training texts.

    Raises:
        UserError: A weight is of a class that there is not.
    """
    found = {}
    for name, given in config.weights_of_classes.items():
        task = tasks[name]
        if not given:
            # All weigh 1, as without any.
            continue
        if given == "balanced":
            weights = KINDS[task.kind].balanced(labels[name], len(task.classes))
            found[name] = [float(weight) for weight in weights]
            continue
        if strange := [each for each in given if each not in task.classes]:
            raise UserError(
                f"--class-weights {name} names the class {quoted(strange[0])}, which is not among "
                f"those of the training data ({listed(list(map(shown, task.classes)), 20)})"
            )
        found[name] = [float(given.get(each, 1.0)) for each in task.classes]
    return found


def refuse_built_in(name: str, what: str) -> None:
    """Refuses the name of a metric that there is already.

    Raises:
        UserError: It is one; ``what`` is what names it.
    """
    if name in BUILT_IN:
        raise UserError(f"{what} {name} already exists: use another name")


def make_metric(function: Any, tasks: Iterable[Task], what: str) -> Metric:
    """A user's metric, tried on a few labels of each kind of these tasks that it is for.

    Args:
        function: (labels, predictions) -> number.
        tasks: The tasks.
        what: What it is called in an error.

    Raises:
        UserError: It is for none of the tasks, or fails.
    """
    measured = _metric(function, what)
    there = {task.kind for task in tasks}
    kinds: list[Kind] = [kind for kind in measured.kinds if kind in there]
    if not kinds:
        raise UserError(
            f"{what} is for {' or '.join(measured.kinds)} alone, and no task is that: leave it out"
        )
    for kind in kinds:
        _ = measured(*_TRIED[kind])
    return measured


def _metric(function: Any, what: str) -> Metric:
    kinds = getattr(function, "kinds", get_args(Kind))
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(get_args(Kind)):
        raise UserError(
            f"{what}: its kinds are {kinds!r}: name some of {', '.join(get_args(Kind))}, in a tuple"
        )
    return Metric(function, what, tuple(kinds))


def check_loss(loss: Loss, what: str, task: Task, *, soft: bool = False) -> None:
    """Tries a user's loss on the shapes that it will have.

    Args:
        loss: (logits, labels) -> (sum, count).
        what: What it is called in an error.
        task: The task that it is for.
        soft: Whether it is given distributions over the classes as well.

    Raises:
        UserError: It can't be called so, or returns something else.
    """
    logits = jax.ShapeDtypeStruct((2, 3, task.outputs), np.float32)
    blank = LABELS[task.kind].blank(1, len(task.classes))
    dtype = np.float32 if task.kind == "regression" else blank.dtype
    labels = jax.ShapeDtypeStruct((2, 3, *blank.shape[1:]), dtype)
    try:
        made = jax.eval_shape(loss, logits, labels, *((logits,) if soft else ()))
    except Exception as error:
        many = f"..., {len(task.classes)}" if task.kind == "multi_label" else "..."
        given = f"{'' if soft else 'and '}labels, {np.dtype(dtype)} [{many}]"
        shares = f", and shares, float32 [..., {task.outputs}]" if soft else ""
        raise UserError(
            f"{what} can't be called with logits, float32 [..., {task.outputs}], {given}{shares} "
            f"({first_line(error)}): correct it"
        ) from error
    shapes = [getattr(each, "shape", None) for each in jax.tree.leaves(made)]
    if not isinstance(made, tuple) or shapes != [(), ()]:
        raise UserError(
            f"{what} returns {made}: let it return the sum of the losses and the number of labels, "
            "two scalars"
        )


def make_head(found: Any, outputs: int, hidden_size: int, what: str) -> Head:
    """A user's head, tried on the shapes that it will have.

    Args:
        found: A Flax module, or a class or function that makes one for so many classes.
        outputs: How many logits it is to make of a vector.
        hidden_size: Length of a pooled vector.
        what: What it is called in an error.

    Raises:
        UserError: It is no such thing, or makes something else.
    """
    made = _head(found, outputs, what)
    _check_head(made, what, outputs, hidden_size)
    return Head(made)


def _head(found: Any, classes: int, what: str) -> nn.Module:
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
            f"{what}: {getattr(found, '__name__', found)} can't be made ({error}): give it "
            "a field classes, or defaults"
        ) from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{what}: {found!r} is not a Flax module and does not return one: name one")
    return made


def _check_head(head: nn.Module, what: str, classes: int, hidden_size: int) -> None:
    vectors = jax.ShapeDtypeStruct((2, 3, hidden_size), np.float32)
    init = functools.partial(head.init_with_output, jax.random.key(0))
    try:
        logits, _ = jax.eval_shape(init, vectors)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{what}: {type(head).__name__} can't be called with pooled vectors, float32 "
            f"[..., {hidden_size}] ({reason}): correct it"
        ) from error
    if getattr(logits, "shape", None) != (2, 3, classes):
        raise UserError(
            f"{what}: {type(head).__name__} makes {getattr(logits, 'shape', logits)} of "
            f"vectors [2, 3, {hidden_size}], and the task has {classes} classes: make it "
            f"[2, 3, {classes}]"
        )
