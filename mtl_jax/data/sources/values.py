"""Values of a table as texts and names of classes, whatever file they are from."""

from __future__ import annotations

import re

_WHOLE = re.compile(r"(-?(?:0|[1-9]\d{0,15}))\.0+", re.ASCII)
_MOST_NAMES = 2**20


class UnusableError(Exception):
    """A value that is no text, or no label; it says why, and what to do."""


def text_of(column: str, value: object) -> str:
    """The value, which must be a text.

    Raises:
        UnusableError: It is none.
    """
    if not isinstance(value, str):
        raise UnusableError(f"{column!r} is {kind_of(value)} and not a string: put a text there")
    return _unicode(column, value)


def label_of(column: str, value: object) -> str | None:
    """The name of the class that a value stands for, None for a missing one.

    Raises:
        UnusableError: It can't be a label.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is not None and not isinstance(value, str | int | float):
        raise UnusableError(
            f"{column!r} is {kind_of(value)}: a label is a string, a number or a boolean"
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    label = _unicode(column, "" if value is None else str(value).strip())
    # A column of whole numbers with gaps is written as floats, in text files as well.
    if whole := _WHOLE.fullmatch(label):
        label = str(int(whole[1]))
    return None if label in ("", "-1") else label


class Labels(dict[object, "str | None"]):
    """What ``label_of`` makes of each value of a column, worked out once for equal ones."""

    def __init__(self, column: str):
        super().__init__()
        self._column = column

    def __missing__(self, value: object) -> str | None:
        if len(self) >= _MOST_NAMES:
            self.clear()
        return self.setdefault(value, label_of(self._column, value))


def kind_of(value: object) -> str:
    """What a value is, in words."""
    kinds = {type(None): "null or absent", bool: "a boolean", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a string" if isinstance(value, str) else "a number")


def _unicode(column: str, value: str) -> str:
    """The value, which must be one that UTF-8 can write: JSON can hold half of a character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UnusableError(f"{column!r} is no Unicode text ({error.reason}): correct it") from None
    return value
