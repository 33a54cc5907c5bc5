"""Class names become numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from mtl_jax.core.errors import UserError
from mtl_jax.data.names import listed, quoted, shown
from mtl_jax.data.table import Table

MISSING = -1
"""The label of an example that has none for a task."""


def learn_classes(labels: Iterable[str | None]) -> tuple[str, ...]:
    """The distinct labels, numbers first and by value, then the others by spelling."""

    def order(label: str) -> tuple[bool, float, str]:
        number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", label, re.ASCII)
        return (number is None, float(label) if number else 0.0, label)

    return tuple(sorted({label for label in labels if label is not None}, key=order))


def number(
    table: Table, task: str, column: str, classes: tuple[str, ...], split: str
) -> np.ndarray:
    """The labels of one task as indices into its classes, int32 [n], MISSING where there is none.

    Args:
        table: Its n rows.
        task: The task.
        column: Where its labels are from, for an error.
        classes: Its class names.
        split: Which split it is: one to train on must have a label.

    Raises:
        UserError: A label is not among the classes, or there is none to train on.
    """
    labels = table.labels[task]
    numbers = {name: index for index, name in enumerate(classes)}
    # Of each name once, however many rows have it.
    of_names = np.full(len(labels.names), MISSING, np.int32)
    for i, label in enumerate(labels.names):
        if label is None:
            continue
        if label not in numbers:
            known = listed(list(map(shown, classes)), 20)
            row = int(np.argmax(labels.codes == i))
            raise UserError(
                f"{table.place(row)}: {task} label {quoted(label)} is not among those of the "
                f"training data ({known}): correct it, or add such examples to the training data"
            )
        of_names[i] = numbers[label]
    numbered = of_names[labels.codes]
    if split == "train" and not np.any(numbered != MISSING):
        raise UserError(
            f"{table.place(0)} and after: no row has a {task} label in {column!r}: "
            f"name another column with --label-columns, or leave {task} out of it"
        )
    return numbered
