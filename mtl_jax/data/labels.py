"""The labels of a table become arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from mtl_jax.core.errors import UserError
from mtl_jax.core.names import listed, quoted, shown
from mtl_jax.data.kinds import LabelKind, has_label
from mtl_jax.data.soft_labels import DISTRIBUTION, soft_name
from mtl_jax.data.table import Table


def as_array(
    table: Table, task: str, kind: LabelKind, column: str, classes: tuple[str, ...], split: str
) -> np.ndarray:
    """The labels of one task, of the form that ``kinds`` tells.

    Args:
        table: Its n rows.
        task: The task.
        kind: Its kind.
        column: Where its labels are from, for an error.
        classes: Its class names.
        split: Which split it is: one to train on must have a label.

    Raises:
        UserError: A label is not among the classes, or there is none to train on.
    """

    def refuse(row: int, label: str) -> NoReturn:
        known = listed(list(map(shown, classes)), 20)
        raise UserError(
            f"{table.place(row)}: {task} label {quoted(label)} is not among those of the "
            f"training data ({known}): correct it, or add such examples to the training data"
        )

    if split == "train" and all(label is None for label in table.labels[task]):
        raise UserError(
            f"{table.place(0)} and after: no row has a {task} label in {column!r}: "
            f"name another column with --label-columns, or leave {task} out of it"
        )
    if split == "train" and kind.has_classes and not classes:
        raise UserError(
            f"{table.place(0)} and after: every list of {task} labels in {column!r} is empty: "
            f"name another column with --label-columns, or leave {task} out of it"
        )
    return kind.array(table.labels[task], classes, refuse)


def soft_array(table: Table, task: str, column: str, classes: Sequence[str]) -> np.ndarray:
    """The distributions of a task, float32 [n, classes]; all 0 where a text has none.

    Args:
        table: Its n rows.
        task: The task.
        column: Where they are from, for an error.
        classes: The names of the task's classes.

    Raises:
        UserError: One has a class that is none of the task's, or another number of shares.
    """

    def refuse(row: int, what: str) -> NoReturn:
        known = listed(list(map(shown, classes)), 20)
        if what.startswith("["):
            raise UserError(
                f"{table.place(row)}: {column!r} has the shares {what}, and {task} has "
                f"{len(classes)} classes ({known}): give one for each, or an object by class"
            )
        raise UserError(
            f"{table.place(row)}: {column!r} has a share of {quoted(what)}, which is no class of "
            f"{task} ({known}): correct it"
        )

    return DISTRIBUTION.array(table.labels[soft_name(task)], classes, refuse)


def scale_of(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the labels of a regression, 1 where they do not vary.

    Args:
        values: float64 [n], NaN where there is none.
    """
    there = values[has_label(values)]
    if not len(there):
        return 0.0, 1.0
    deviation = float(there.std())
    return float(there.mean()), deviation if deviation > 0 else 1.0
