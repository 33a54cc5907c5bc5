"""Whether values are of the types that annotations name, for what a script gives."""

from __future__ import annotations

import functools
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mtl_jax.core.converted import Given
from mtl_jax.core.errors import UserError, shortened

_WORDS = {
    NoneType: "None",
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    PathLike: "a path",
    Callable: "a class or function",
    Mapping: "a mapping",
    Sequence: "a list",
    tuple: "a tuple",
}
_LONGEST = 100
_MISSING = object()


def refuse_types(settings: Any, kind: type) -> None:
    """Refuses fields of a dataclass whose values are of other types than may be given.

    Numbers of numpy become those of Python.

    Args:
        settings: The instance, frozen or not.
        kind: Its class, or the base whose fields are looked at.

    Raises:
        UserError: One is of another type.
    """
    for name, hint in _hints(kind).items():
        value = getattr(settings, name)
        # Most are as the class has them, and a study makes thousands of settings.
        if value is not getattr(kind, name, _MISSING):
            refuse_type(name, value, hint)
            object.__setattr__(settings, name, plain(value))


def plain(value: Any) -> Any:
    """Returns Python's number of one of numpy, which JSON can't hold; anything else as it is."""
    if not isinstance(value, numbers.Real) or isinstance(value, (int, float)):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def refuse_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuses arguments of other types than a function's annotations name.

    Args:
        function: The function, whose annotations can all be evaluated.
        arguments: Its arguments by name, as ``locals()`` has them where it begins.

    Raises:
        UserError: One is of another type.
    """
    for name, hint in _hints(function).items():
        if name in arguments:
            refuse_type(name, arguments[name], hint)


def refuse_type(name: str, value: object, hint: Any) -> None:
    """Refuses a value that is of another type.

    Args:
        name: What the value is called.
        value: The value.
        hint: A type, ``Literal``, a union, or a sequence, tuple, mapping or function of these; of
            a ``Converted`` what is given counts.

    Raises:
        UserError: It is of another type.
    """
    if not _fits(value, hint):
        *others, last = dict.fromkeys(_words(hint))
        words = f"{', '.join(others)} or {last}" if others else last
        raise UserError(f"{name} is {shortened(repr(value), _LONGEST)}: give {words}")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _given(hint: Any) -> Any:
    """What is given, of a ``Converted``."""
    if get_origin(hint) is Annotated:
        given = [each.type for each in hint.__metadata__ if isinstance(each, Given)]
        return given[0] if given else get_args(hint)[0]
    return hint


def _fits(value: Any, hint: Any) -> bool:
    hint = _given(hint)
    kind, of = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in of)
    if kind is Literal:
        return any(type(value) is type(each) and value == each for each in of)
    if kind in (int, float):
        return _is_number(value, kind)
    if kind is tuple and of[1:] != (...,):
        if not isinstance(value, (list, tuple)) or len(value) != len(of):
            return False
        return all(map(_fits, value, of))
    if kind in (tuple, Sequence):
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            return False
        return all(_fits(each, of[0]) for each in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, of[0]) and _fits(each, of[1]) for key, each in value.items()
        )
    return isinstance(value, kind)


def _is_number(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, numbers.Integral):
        # JSON has integers for which there is no float.
        return kind is int or abs(int(value)) <= sys.float_info.max
    return kind is float and isinstance(value, numbers.Real)


def _words(hint: Any) -> list[str]:
    hint = _given(hint)
    kind, of = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return [words for each in of for words in _words(each)]
    if kind is Literal:
        return [repr(each) for each in of]
    return [_WORDS.get(kind) or f"a {kind.__name__}"]
