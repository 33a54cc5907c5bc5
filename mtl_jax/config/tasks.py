"""The tasks of a run, as data: what each is called, and where its labels are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from mtl_jax.core.errors import UserError

Kind = Literal["single_label"]

# A head stands beside these in the tree of parameters, its labels beside these in a batch, or its
# answer beside the text; a tree with ``params`` in it Flax takes for one that is wrapped twice.
_TAKEN = (
    "backbone",
    "dropout",
    "example",
    "input_ids",
    "params",
    "pooled",
    "position_ids",
    "segment_ids",
    "states",
    "text",
)
# all_frozen and none_frozen are scenarios, and <task>_frozen is one.
_SCENARIOS = ("all", "none")
_NAME = re.compile(r"[^\W\d_][\w-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Task:
    """One task: a name, the kind of its labels, where they are, and how much its loss counts.

        Task("topic", column="category", classes=("economy", "sport"))

    Attributes:
        name: What its head, its metrics and its predictions are called.
        kind: ``single_label``: each text has one class.
        column: The column or feature that holds its labels; by default its name.
        classes: The names of its classes, in the order of their numbers.
        weight: What its mean loss is multiplied by.

    Raises:
        UserError: The name can't be one.
    """

    name: str
    kind: Kind = "single_label"
    column: str = ""
    classes: tuple[str, ...] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        refuse_task_name(self.name, "the task")
        object.__setattr__(self, "column", self.column or self.name)
        object.__setattr__(self, "classes", tuple(self.classes))


def refuse_task_name(name: str, where: str) -> None:
    """Refuses what can't be the name of a task.

    Args:
        name: The name.
        where: What the error begins with, such as the flag.

    Raises:
        UserError: It is taken by a part of the model or by a scenario, or has other characters
            than letters, digits, ``_`` and ``-`` after a letter.
    """
    taken = name in _TAKEN or name.startswith("target_")
    if taken or name in _SCENARIOS:
        why = "is taken by the model" if taken else f"would make {name}_frozen ambiguous"
        raise UserError(f"{where} {name!r} {why}: call the task something else")
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{where} {name!r} can't be the name of a task: use a letter, then letters, digits, "
            "_ and - (64 at most)"
        )


def pairs_of(
    flag: str, pairs: Iterable[str], what: str, tasks: Sequence[str] | None = None
) -> dict[str, str]:
    """Reads ``task=value`` pairs.

    Args:
        flag: Where they are from, for an error.
        pairs: The pairs.
        what: What the values are, in one word.
        tasks: The tasks that there are; None where the pairs themselves say it.

    Returns:
        The value of each task, in the order of ``pairs``.

    Raises:
        UserError: One is no pair, or names a task twice, or one that is not there.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        task, _, value = pair.partition("=")
        if not task or not value:
            raise UserError(f"{flag} {pair!r} is not a pair: write task={what}")
        if tasks is None:
            refuse_task_name(task, flag)
        elif task not in tasks:
            raise UserError(
                f"{flag} names the task {task!r}, which has no column: use "
                f"{' or '.join(tasks)}, or add one with --label-columns"
            )
        if task in values:
            raise UserError(f"{flag} names the task {task!r} twice: name it once")
        values[task] = value
    return values


def numbers_of(
    flag: str, pairs: Iterable[str], what: str, tasks: Sequence[str]
) -> dict[str, float]:
    """As ``pairs_of``, of numbers; what is none is NaN, for the caller to refuse in its words."""
    values = {}
    for task, words in pairs_of(flag, pairs, what, tasks).items():
        try:
            values[task] = float(words)
        except ValueError:
            values[task] = float("nan")
    return values
