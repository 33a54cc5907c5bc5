"""Fields of dataclasses that accept more than they keep, as a type checker sees them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

_Given_contra = TypeVar("_Given_contra", contravariant=True)
_Kept_co = TypeVar("_Kept_co", covariant=True)

PathText = str | os.PathLike[str]
"""A path, or the name of something that is no file."""
ByTask = str | Sequence[str] | Mapping[str, Any]
"""``task=value`` pairs, or a mapping by task; a text by itself stands for all tasks."""
Code = str | Callable[..., Any]
"""A class or function that a module defines, or its ``module:name``."""
CodeByName = Code | Sequence[Code] | Mapping[str, Code]
"""Code for all tasks or by itself, or by the name of a task or a metric."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What such a field may be given, beside its annotation."""

    type: Any


class Converted(Generic[_Given_contra, _Kept_co]):
    """The type of a field whose ``__post_init__`` makes what is kept of what is given.

    To a type checker it is a descriptor, whose ``__set__`` says what the constructor takes and
    whose ``__get__`` says what is read (typing specification, "Dataclasses"). When a program runs,
    it is the type of what is kept, annotated with what is given.
    """

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None) -> _Kept_co: ...

        def __set__(self, instance: object, value: _Given_contra) -> None: ...

    else:

        def __class_getitem__(cls, types):
            given, kept = types
            return Annotated[kept, Given(given)]


def default(value: object) -> Any:
    """Returns the default of such a field, which is of the type that is kept."""
    return value


def required() -> Any:
    """Returns what such a field has where it has no default.

    mypy takes a field without a value for no descriptor, and would refuse what may be given.
    """
    return dataclasses.field()
