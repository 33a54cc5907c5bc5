"""Values of a table as texts and labels, whatever file they are from."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from mtl_jax.data.columns import Column, Label
from mtl_jax.data.kinds import LabelKind, type_in_words

_MOST_NAMES = 2**20


class UnusableError(Exception):
    """A value that is no text, or no label; it says why, and what to do.

    Attributes:
        index: Which one of the values of a column it is, from 0.
    """

    index = 0


def text_of(column: str, value: object) -> str:
    """The value, which must be a text.

    Raises:
        UnusableError: It is none.
    """
    if not isinstance(value, str):
        found = type_in_words(value)
        raise UnusableError(f"{column!r} is {found} and not a string: put a text there")
    return _unicode(column, value)


def label_of(column: str, value: object, kind: LabelKind) -> Label:
    """What a cell holds, None for a missing label.

    Raises:
        UnusableError: It can't be a label of this kind.
    """
    try:
        label = kind.read(value)
    except ValueError as error:
        raise UnusableError(f"{column!r} is {error}") from error
    for name in label if isinstance(label, tuple) else (label,):
        if isinstance(name, str):
            _unicode(column, name)
    return label


class Labels(dict[object, Label]):
    """What ``label_of`` makes of the values of a column, worked out once for equal ones."""

    def __init__(self, column: str, kind: LabelKind):
        super().__init__()
        self._column, self._kind = column, kind

    def __missing__(self, value: object) -> Label:
        if len(self) >= _MOST_NAMES:
            self.clear()
        return self.setdefault(value, label_of(self._column, value, self._kind))

    def of(self, values: Sequence[object]) -> Sequence[Label]:
        """The labels of k values, all of one type; a ``Column`` of a ``Column``.

        Raises:
            UnusableError: One can't be a label.
        """
        if isinstance(values, Column):
            try:
                return Column(values.codes, self.of(values.names))
            except UnusableError as error:
                error.index = int(np.argmax(values.codes == error.index))
                raise
        if self._kind.lists:
            values = [tuple(value) if isinstance(value, list) else value for value in values]
        # As JSON where it is none, and can't be looked up: a struct of Parquet.
        values = [json.dumps(value) if isinstance(value, dict) else value for value in values]
        found: list[Label] = []
        try:
            # Those before an error stay in the list.
            found.extend(map(self.__getitem__, values))
        except UnusableError as error:
            error.index = len(found)
            raise
        return found


def _unicode(column: str, value: str) -> str:
    """The value, which must be one that UTF-8 can write: JSON can hold half of a character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UnusableError(f"{column!r} is no Unicode text ({error.reason}): correct it") from None
    return value
