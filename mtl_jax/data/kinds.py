"""What the labels of each kind of task are: from a cell of a file to an array.

The type of an array of labels tells the kind: int32 [n] are numbers of classes, int8 [n, classes]
say of each class whether a text has it, and floats [n] are values. A text without a label has -1,
a row of -1, or NaN.
"""

from __future__ import annotations

import decimal
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np

from mtl_jax.config.tasks import Kind
from mtl_jax.core.names import quoted
from mtl_jax.data.columns import Column, GatherNames, GatherNumbers, Label, gathered

MISSING = -1
"""What stands for the label of a text that has none for a task; NaN where labels are floats."""

SEPARATOR = "|"
"""Between the classes of a cell that is no JSON list."""

_WHOLE = re.compile(r"(-?(?:0|[1-9]\d{0,15}))\.0+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_COMMA = re.compile(r"[+-]?[\d.]*,[\d.,]*", re.ASCII)
_SPELLED = re.compile(r"[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
# Standardised values are float32.
_LARGEST = 1e30


def kind_of(labels: Any) -> Kind:
    """The kind of an array of labels, of numpy or of JAX."""
    if np.issubdtype(labels.dtype, np.floating):
        return "regression"
    return "multi_label" if labels.dtype == np.int8 else "single_label"


def has_label(labels: Any) -> Any:
    """Which texts have a label: bool, of the shape of the texts.

    Args:
        labels: An array of numpy or JAX, one label to a text.
    """
    kind = kind_of(labels)
    if kind == "regression":
        return labels == labels
    return labels[..., 0] >= 0 if kind == "multi_label" else labels >= 0


def blank(labels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """An array for labels like these, where no text has one.

    Args:
        labels: One label to a text.
        shape: That of the texts.
    """
    return np.full((*shape, *labels.shape[1:]), blank_value(labels), labels.dtype)


def blank_value(labels: Any) -> Any:
    """What is in the place of the label of a text without one, a scalar of the labels' type."""
    missing = np.nan if kind_of(labels) == "regression" else MISSING
    return np.asarray(missing, labels.dtype)


class SingleLabel:
    """Each text has one class.

    Attributes:
        name: As of ``Task``.
        has_classes: Whether labels are classes.
        lists: Whether a cell may be a list.
        booleans: Whether it may be a boolean.
        beside: Whether it stands beside a label, and is none by itself.
        values: In words what it may be.
        gather: What keeps the labels of a column as they are read.
    """

    name: ClassVar[Kind] = "single_label"
    has_classes: ClassVar[bool] = True
    lists: ClassVar[bool] = False
    booleans: ClassVar[bool] = True
    beside: ClassVar[bool] = False
    values: ClassVar[str] = "strings, whole numbers or booleans"
    gather: ClassVar[type[GatherNames]] = GatherNames

    def read(self, value: object) -> Label:
        """What a cell holds.

        Args:
            value: A string, or what JSON, Parquet or TFDS have in its place.

        Raises:
            ValueError: It can't be a label; says what it is, in words that follow "is".
        """
        if isinstance(value, list | tuple | np.ndarray):
            raise ValueError(
                "a list, and a single_label task has one class: for several give the task the "
                "kind multi_label with --task-kinds"
            )
        return _class_of(value)

    def declared(self, value: Any, names: Sequence[str]) -> Label:
        """What a cell holds of a column whose source declares the classes.

        Args:
            value: The number of a class, negative or None where the label is missing.
            names: The names of the classes.

        Raises:
            ValueError: As of ``read``.
        """
        return _named(value, names)

    def classes(self, labels: Sequence[Any]) -> tuple[str, ...]:
        """The distinct classes, numbers first and by value, then the others by spelling."""
        return _sorted(label for label in gathered(labels).occurring() if label is not None)

    def blank(self, texts: int, classes: int) -> np.ndarray:
        """The array of so many texts, none with a label."""
        del classes
        return np.full(texts, MISSING, np.int32)

    def array(
        self, labels: Sequence[Any], classes: Sequence[str], refuse: Callable[[int, str], NoReturn]
    ) -> np.ndarray:
        """The labels as an array.

        Args:
            labels: What ``read`` gives of n cells.
            classes: The names of the classes.
            refuse: Called with the place and the name of a class that is not among them.
        """
        column = gathered(labels)
        _refuse_others(column, classes, refuse)
        of_names = self.blank(len(column.names), len(classes))
        numbers: dict[Label, int] = {name: index for index, name in enumerate(classes)}
        for i, name in enumerate(column.names):
            if name is not None:
                of_names[i] = numbers.get(name, MISSING)
        return of_names[column.codes]


class MultiLabel:
    """Each text has any number of classes, none included."""

    name: ClassVar[Kind] = "multi_label"
    has_classes: ClassVar[bool] = True
    lists: ClassVar[bool] = True
    booleans: ClassVar[bool] = True
    beside: ClassVar[bool] = False
    values: ClassVar[str] = "lists, strings, whole numbers or booleans"
    gather: ClassVar[type[GatherNames]] = GatherNames

    def read(self, value: object) -> Label:
        """See ``SingleLabel``: a JSON list, or classes with ``SEPARATOR`` between them."""
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str) and value.strip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{quoted(str(value))}, which is not a JSON list: write "
                    '["a", "b"], with double quotes, or a|b'
                ) from error
        if isinstance(value, list | tuple | np.ndarray):
            names = [_class_of(each, "a list that has") for each in value]
        elif (one := _class_of(value)) is None:
            return None
        else:
            names = [_class_of(name) for name in one.split(SEPARATOR)]
        if None in names:
            raise ValueError(f"a list with an empty class, or {MISSING}, in it: leave that out")
        return tuple(dict.fromkeys(name for name in names if name))

    def declared(self, value: Any, names: Sequence[str]) -> Label:
        """See ``SingleLabel``: a list of numbers, or one."""
        many = isinstance(value, list | tuple | np.ndarray)
        found = [_named(each, names) for each in (value if many else [value])]
        if None in found:
            if many:
                raise ValueError(f"a list with {MISSING} in it: leave that out")
            return None
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def classes(self, labels: Sequence[Any]) -> tuple[str, ...]:
        """See ``SingleLabel``."""
        lists = (label for label in gathered(labels).occurring() if isinstance(label, tuple))
        return _sorted(name for label in lists for name in label)

    def blank(self, texts: int, classes: int) -> np.ndarray:
        """See ``SingleLabel``."""
        return np.full((texts, classes), MISSING, np.int8)

    def array(
        self, labels: Sequence[Any], classes: Sequence[str], refuse: Callable[[int, str], NoReturn]
    ) -> np.ndarray:
        """See ``SingleLabel``: 1 where a text has the class, 0 where it has not."""
        column = gathered(labels)
        _refuse_others(column, classes, refuse)
        of_names = self.blank(len(column.names), len(classes))
        numbers = {name: index for index, name in enumerate(classes)}
        for i, label in enumerate(column.names):
            if isinstance(label, tuple):
                of_names[i] = 0
                of_names[i, [numbers[name] for name in label if name in numbers]] = 1
        return of_names[column.codes]


class Regression:
    """Each text has a value."""

    name: ClassVar[Kind] = "regression"
    has_classes: ClassVar[bool] = False
    lists: ClassVar[bool] = False
    booleans: ClassVar[bool] = False
    beside: ClassVar[bool] = False
    values: ClassVar[str] = "numbers, or strings that spell them"
    gather: ClassVar[type[GatherNumbers]] = GatherNumbers

    def read(self, value: object) -> Label:
        """See ``SingleLabel``: a finite number; -1 is one."""
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            value = value.strip()
            if not value:
                return None
            if _SPELLED.fullmatch(value):
                raise ValueError(f"{quoted(value)}, no finite number: leave it empty if missing")
            if _COMMA.fullmatch(value):
                raise ValueError(
                    f"{quoted(value)}, and a regression needs a number: write it with a decimal "
                    "point, and without separators of thousands"
                )
            if not _NUMBER.fullmatch(value):
                raise ValueError(
                    f"{quoted(value)}, and a regression needs a number: correct it, or give the "
                    "task another kind with --task-kinds"
                )
        elif value is None:
            return None
        elif isinstance(value, bool | np.bool_) or not isinstance(
            value, int | float | decimal.Decimal | np.integer | np.floating
        ):
            raise ValueError(f"{type_in_words(value)}, and a regression needs a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not abs(number) <= _LARGEST:
            words = "no finite number: leave it empty if missing"
            raise ValueError(words if math.isnan(number) else f"too large: at most {_LARGEST:g}")
        return number

    def declared(self, value: Any, names: Sequence[str]) -> Label:
        """See ``SingleLabel``: the number that the name of the class spells."""
        return self.read(_named(value, names))

    def classes(self, labels: Sequence[Any]) -> tuple[str, ...]:
        """See ``SingleLabel``: there are none."""
        del labels
        return ()

    def blank(self, texts: int, classes: int) -> np.ndarray:
        """See ``SingleLabel``."""
        del classes
        return np.full(texts, np.nan)

    def array(
        self, labels: Sequence[Any], classes: Sequence[str], refuse: Callable[[int, str], NoReturn]
    ) -> np.ndarray:
        """See ``SingleLabel``: the values, float64."""
        del classes, refuse
        values = (np.nan if label is None else label for label in labels)
        return np.fromiter(values, np.float64, len(labels))


LabelKind = SingleLabel | MultiLabel | Regression
KINDS: Mapping[Kind, LabelKind] = {
    each.name: each for each in (SingleLabel(), MultiLabel(), Regression())
}
"""By name."""


def kinds_of(tasks: Iterable[str], kinds: Mapping[str, Kind]) -> dict[str, LabelKind]:
    """The kind of each task, ``single_label`` where ``kinds`` leaves it out."""
    return {task: KINDS[kinds.get(task, SingleLabel.name)] for task in tasks}


def _named(value: Any, names: Sequence[str]) -> str | None:
    if value is None or value < 0:
        return None
    if not value < len(names):
        raise ValueError(
            f"{value}, which none of {len(names)} classes has, counted from 0: correct it, or "
            "declare that class"
        )
    return names[int(value)]


def _class_of(value: object, where: str = "") -> str | None:
    """The name of a class, None where it is missing."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if value is not None and not isinstance(value, str | int | float | np.integer | np.floating):
        what = f"{where} {type_in_words(value)}".strip()
        raise ValueError(f"{what}: a label is a string, a number or a boolean")
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    label = "" if value is None else str(value).strip()
    # A column of whole numbers with gaps is written as floats, in text files as well.
    if whole := _WHOLE.fullmatch(label):
        label = str(int(whole[1]))
    return None if label in ("", str(MISSING)) else label


def _refuse_others(
    column: Column, classes: Sequence[str], refuse: Callable[[int, str], NoReturn]
) -> None:
    """Calls ``refuse`` for the first label with a class that is not among them, if there is one."""
    known = {*classes}
    others: dict[int, str] = {}
    for code, label in enumerate(column.names):
        names = label if isinstance(label, tuple) else () if label is None else (str(label),)
        if other := [name for name in names if name not in known]:
            others[code] = other[0]
    if others:
        places = np.flatnonzero(np.isin(column.codes, list(others)))
        for place in places[:1].tolist():
            refuse(place, others[int(column.codes[place])])


def _sorted(names: Any) -> tuple[str, ...]:
    def order(name: str) -> tuple[bool, float, str]:
        number = _NUMBER.fullmatch(name)
        return (number is None, float(name) if number else 0.0, name)

    return tuple(sorted(set(names), key=order))


def type_in_words(value: object) -> str:
    """What a value is, for an error."""
    kinds = {type(None): "null or absent", bool: "a boolean", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a string" if isinstance(value, str) else "a number")
