"""The import paths of a user's own code in the settings of a run; nothing is imported here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_jax.config.tasks import pairs_of
from mtl_jax.core.errors import UserError
from mtl_jax.core.imported import import_path

FIELDS = ("heads", "loss", "metrics", "callbacks")
"""The settings that name code; ``schedule`` does where it has a colon."""


def as_paths(name: str, value: Any) -> tuple[str, ...]:
    """What a setting is given as, as the command line has it.

    Args:
        name: The setting.
        value: Pairs ``name=module:attribute``, or a mapping; an import path by itself; where
            there is one, the class or function that a path names.

    Raises:
        UserError: Another process could not import it.
    """
    flag = f"--{name}"
    if isinstance(value, Mapping):
        return tuple(f"{key}={import_path(own, f'{flag} {key}')}" for key, own in value.items())
    if isinstance(value, str) or callable(value):
        value = (value,)
    return tuple(import_path(each, flag) for each in value)


def paths_by_name(
    flag: str, pairs: Iterable[str], names: Sequence[str] | None, *, every: bool = False
) -> dict[str, str]:
    """The import path of each name.

    Args:
        flag: Where they are from, for an error.
        pairs: ``name=module:attribute``.
        names: The names that there are; None for any.
        every: Whether a path by itself stands for all names.

    Raises:
        UserError: One is not a pair, or names what is not there.
    """
    pairs = tuple(pairs)
    if every and len(pairs) == 1 and "=" not in pairs[0]:
        return dict.fromkeys(names or (), pairs[0])
    return pairs_of(flag, pairs, "module:name", names)


def as_pairs(value: Any) -> tuple[str, ...]:
    """A setting of the tasks as the command line has it, from that or from a mapping by task."""
    if isinstance(value, Mapping):
        return tuple(
            f"{task}={json.dumps(own) if isinstance(own, Mapping) else own}"
            for task, own in value.items()
        )
    return (str(value),) if isinstance(value, str | int | float) else tuple(value)


def by_task(
    flag: str, values: Sequence[str], what: str, tasks: Sequence[str], *, only: Sequence[str]
) -> dict[str, str]:
    """The value of each task, from ``task=value`` pairs or one value for all.

    Args:
        flag: Where they are from, for an error.
        values: The pairs, or the value.
        what: What they are, in one word.
        tasks: The tasks.
        only: Those that one value for all is for.

    Raises:
        UserError: One is not a pair, or names what is no task.
    """
    if len(values) == 1 and values[0].partition("=")[0] not in tasks and "=" not in values[0]:
        return dict.fromkeys(only, values[0])
    return pairs_of(flag, values, what, tasks)


def named_paths(settings: Mapping[str, Any]) -> list[str]:
    """Every import path that the settings of a record name."""
    paths: list[str] = []
    for name in FIELDS:
        value = settings.get(name) or ()
        pairs = value.values() if isinstance(value, Mapping) else value
        paths += [str(pair).rpartition("=")[2] for pair in pairs]
    schedule = str(settings.get("schedule") or "")
    return [*paths, *([schedule] if ":" in schedule else [])]


def refuse_schedule(schedule: str, known: Sequence[str]) -> None:
    """Refuses a schedule that is neither built in nor an import path.

    Raises:
        UserError: It is neither.
    """
    if schedule not in known and ":" not in schedule:
        raise UserError(f"schedule {schedule!r}: use {', '.join(known)}, or module:function")
