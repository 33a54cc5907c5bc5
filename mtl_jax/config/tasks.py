"""The tasks of a run, as data: what each is called, and where its labels are."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal, cast, get_args

from mtl_jax.core.errors import UserError

Kind = Literal["single_label", "multi_label", "regression"]
SCORES: dict[Kind, str] = {
    "single_label": "macro_f1",
    "multi_label": "macro_f1",
    "regression": "r2",
}
"""The metric that a task of each kind is judged by; 1 is the best, a higher one the better."""

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
    "token_type_ids",
)
# all_frozen and none_frozen are scenarios, and <task>_frozen is one.
_SCENARIOS = ("all", "none")
_NAME = re.compile(r"[^\W\d_][\w-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: its name, the kind and column of its labels, and the weight of its loss.

        Task("topic", column="category", classes=("economy", "sport"))

    Attributes:
        name: The name of its head, metrics and predictions.
        kind: ``single_label``: each text has one class; ``multi_label``: any number of classes;
            ``regression``: a number.
        column: The column or feature with its labels; by default its name.
        classes: The names of its classes, in the order of their numbers; none for a regression.
        weight: Factor of its mean loss.
        mean: For a regression, the mean of the training labels, which is subtracted.
        deviation: For a regression, the standard deviation of the training labels, by which they
            are divided.

    Raises:
        UserError: The name or the weight is not allowed, or there is no such kind.
    """

    name: str
    kind: Kind = "single_label"
    column: str = ""
    classes: tuple[str, ...] = ()
    weight: float = 1.0
    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self) -> None:
        refuse_task_name(self.name, "the task")
        refuse_kind(self.kind, f"kind of the task {self.name!r}")
        refuse_weight(self.weight, f"weight of the task {self.name!r}")
        object.__setattr__(self, "column", self.column or self.name)
        object.__setattr__(self, "classes", tuple(self.classes))

    @property
    def outputs(self) -> int:
        """How many logits its head has: one for each class, or one of a regression."""
        return 1 if self.kind == "regression" else len(self.classes)


def tasks_in_words(tasks: Iterable[Task]) -> str:
    """The tasks, each with how many classes it has or that it is a regression, for a line."""
    return ", ".join(
        f"{task.name} ({task.kind if task.kind == 'regression' else f'{task.outputs} classes'})"
        for task in tasks
    )


def refuse_weight(weight: float, where: str) -> None:
    """Refuses what no loss can be multiplied by.

    Raises:
        UserError: It is no number of 0 or more; ``where`` is what the error begins with.
    """
    if not 0 <= weight < math.inf:
        raise UserError(f"{where} is {weight}: it must be a number of 0 or more")


def refuse_kind(kind: str, where: str) -> Kind:
    """The kind, which must be one that there is.

    Raises:
        UserError: There is no such kind; ``where`` is what the error begins with.
    """
    if kind not in get_args(Kind):
        close = difflib.get_close_matches(kind, get_args(Kind), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"{where} is {kind!r}: {hint}use one of {', '.join(get_args(Kind))}")
    return cast("Kind", kind)


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
        UserError: One is not a pair, or names a task twice, or one that is not there.
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
