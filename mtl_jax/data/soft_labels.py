"""Labels that are distributions: of each text the shares of the classes of a task.

A cell is a JSON object of shares by class, a list of them in the order of the classes, or one class
by itself, which then has it all. Shares may be counts, such as those of raters: they are divided by
their sum. Beside such a column a task has labels of its own, which everything is measured against;
where both are one column, these are the most probable classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np

from mtl_jax.config.tasks import Kind
from mtl_jax.core.names import quoted
from mtl_jax.data.columns import Label, gathered
from mtl_jax.data.kinds import LabelKind, SingleLabel, kinds_of

_SUFFIX = " (soft)"
_HOW = 'write {"a": 0.2, "b": 0.8}, or [0.2, 0.8] in the order of the classes'


def soft_name(task: str) -> str:
    """What the distributions of a task are called among labels, which no task can be called."""
    return f"{task}{_SUFFIX}"


def is_soft(name: str) -> bool:
    """Whether a name among labels is that of distributions."""
    return name.endswith(_SUFFIX)


class Distribution(SingleLabel):
    """Each text has a distribution over the classes; as read it is JSON, one spelling for each."""

    lists: ClassVar[bool] = True
    booleans: ClassVar[bool] = False
    beside: ClassVar[bool] = True
    values: ClassVar[str] = "JSON objects or lists of shares"

    def read(self, value: object) -> Label:
        """See ``SingleLabel``."""
        shares = self._shares(value)
        return None if shares is None else json.dumps(shares)

    def _shares(self, value: object) -> dict[str, float] | list[float] | None:
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str) and value.strip().startswith(("{", "[")):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{quoted(str(value))}, which is no JSON: {_HOW}") from error
        if isinstance(value, Mapping):
            # A struct of Parquet has each class in every row.
            shares = {
                str(super(Distribution, self).read(name) or ""): _share(share)
                for name, share in value.items()
                if share is not None
            }
            _refuse_nothing(shares.values())
            return shares
        if isinstance(value, list | tuple | np.ndarray):
            found = [_share(share) for share in value]
            _refuse_nothing(found)
            return found
        name = super().read(value)
        return None if name is None else {str(name): 1.0}

    def declared(self, value: Any, names: Sequence[str]) -> Label:
        """See ``SingleLabel``: the number of a class is that class by itself."""
        return self.read(super().declared(value, names))

    def classes(self, labels: Sequence[Any]) -> tuple[str, ...]:
        """See ``SingleLabel``: all that a distribution names, numbers where it is a list."""
        names: set[str] = set()
        for label in gathered(labels).occurring():
            names |= _by_class(label).keys()
        return super().classes(sorted(names))

    def blank(self, texts: int, classes: int) -> np.ndarray:
        """See ``SingleLabel``: all 0 is no distribution."""
        return np.zeros((texts, classes), np.float32)

    def array(
        self, labels: Sequence[Any], classes: Sequence[str], refuse: Callable[[int, str], NoReturn]
    ) -> np.ndarray:
        """See ``SingleLabel``: the shares, float32 [n, classes], which add up to 1."""
        column = gathered(labels)
        of_names = self.blank(len(column.names), len(classes))
        numbers = {name: index for index, name in enumerate(classes)}
        for code, label in enumerate(column.names):
            shares = _by_class(label)
            by_place = isinstance(label, str) and label.startswith("[")
            if by_place and len(shares) == len(classes):
                shares = dict(zip(classes, shares.values(), strict=True))
            for name, share in shares.items():
                if name not in numbers or (by_place and len(shares) != len(classes)):
                    place = int(np.flatnonzero(column.codes == code)[0])
                    refuse(place, str(label) if by_place else name)
                of_names[code, numbers[name]] = share
            if shares:
                of_names[code] /= of_names[code].sum()
        return of_names[column.codes]


class MostProbable(Distribution):
    """Each text has one class: the most probable one of its distribution, of equal ones the first.

    Lists have the numbers 0, 1 and so on for classes.
    """

    beside: ClassVar[bool] = False

    def read(self, value: object) -> Label:
        """See ``SingleLabel``."""
        shares = _by_class(super().read(value))
        return max(shares, key=lambda name: shares[name]) if shares else None

    declared = SingleLabel.declared
    classes = SingleLabel.classes
    blank = SingleLabel.blank
    array = SingleLabel.array


DISTRIBUTION, MOST_PROBABLE = Distribution(), MostProbable()


def label_kinds(columns: Mapping[str, str], kinds: Mapping[str, Kind]) -> dict[str, LabelKind]:
    """How each column of labels is read.

    Args:
        columns: By task; that of its distributions by ``soft_name``.
        kinds: Of the tasks; ``single_label`` where it is left out.
    """
    tasks = [name for name in columns if not is_soft(name)]
    found: dict[str, LabelKind] = dict(kinds_of(tasks, kinds))
    for task in tasks:
        if soft_name(task) in columns:
            found[soft_name(task)] = DISTRIBUTION
            if columns[soft_name(task)] == columns[task]:
                found[task] = MOST_PROBABLE
    return {name: found[name] for name in columns}


def agreement(labels: np.ndarray, soft: np.ndarray) -> tuple[int, int]:
    """How many labelled texts have a distribution, and of how many the label is its largest share.

    Args:
        labels: int32 [n], negative where there is none.
        soft: As of ``soft_array``.
    """
    there = (soft.sum(1) > 0) & (labels >= 0)
    return int(there.sum()), int((soft[there].argmax(1) == labels[there]).sum())


def _by_class(label: Label) -> dict[str, float]:
    """What a distribution as read says of each class; nothing where there is none."""
    if not isinstance(label, str):
        return {}
    shares = json.loads(label)
    return shares if isinstance(shares, dict) else {str(i): share for i, share in enumerate(shares)}


def _share(value: object) -> float:
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or isinstance(value, bool) or not 0 <= (share := float(value)) < math.inf:  # pyright: ignore
        raise ValueError(f"a distribution with {quoted(str(value))} in it, no share: {_HOW}")
    return share


def _refuse_nothing(shares: Any) -> None:
    if not sum(shares) > 0:
        raise ValueError(f"a distribution without any share above 0: {_HOW}")
