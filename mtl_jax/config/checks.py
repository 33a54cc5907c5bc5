"""Checks that settings of several kinds share."""

from __future__ import annotations

from typing import Any

from mtl_jax.core.errors import UserError

_LARGEST = 3.4e38


def flag(name: str) -> str:
    """What a field is called on the command line."""
    return "--" + name.replace("_", "-")


def at_least_0(settings: Any, *names: str) -> None:
    """Refuses fields that are given and below 0, or no numbers."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= 0:
            raise UserError(f"{flag(name)} {value} must be a number of 0 or more")


def at_least_1(settings: Any, *names: str) -> None:
    """Refuses fields that are given and below 1."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"{flag(name)} {value} must be at least 1")


def in_float32(settings: Any, *names: str) -> None:
    """Refuses fields that are given and larger than float32 holds, which steps compute in."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value > _LARGEST:
            raise UserError(f"{flag(name)} {value} must be at most {_LARGEST:g}")


def above_0(settings: Any, *names: str) -> None:
    """Refuses fields that are not above 0."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise UserError(f"{flag(name)} {getattr(settings, name)} must be above 0")
