"""What of a run's record may not change, and how two records differ, in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mtl_jax.config.files import defaults_of
from mtl_jax.config.train import LIMITS, TrainConfig
from mtl_jax.core.errors import shortened

VERSION, ID, DIGEST = "mtl_jax", "id", "sha256"
"""What ``Workdir.claim`` adds to a record: the version of this package, a name that no other
folder has, and the digest of all the rest."""

# Of a value that is told, and of a list that is told as a whole, the most characters.
_LONG = 100
_OF_SETTINGS = ("settings.data.", "settings.")


def lasting(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record may not change, wherever it has the limits: some studies' settings do."""
    may_change = ("environment", VERSION, ID, DIGEST)
    kept = {name: value for name, value in record.items() if name not in may_change}
    if isinstance(settings := kept.get("settings"), dict):
        kept["settings"] = {name: v for name, v in settings.items() if name not in LIMITS}
    return kept


def json_digest(value: Any) -> str:
    """SHA-256 of JSON, whatever the order of its names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """How two records differ: each value that is another, with what it was and what it is.

    Of what follows from other things nothing is told where these differ: of the data and the
    backbone where settings do, and of the phases where any of them does.

    Args:
        old: From ``lasting``, as JSON has it.
        new: Likewise.
    """
    names = [*old, *(name for name in new if name not in old)]
    follow = [name for name in names if name not in ("settings", "phases")]
    for part in (["settings"], follow, ["phases"]):
        before, now = ({name: of[name] for name in part if name in of} for of in (old, new))
        if found := list(_changes(before, now)):
            return found
    return []


def _changes(old: Any, new: Any, place: str = "") -> Iterator[str]:
    if old == new:
        return
    if isinstance(old, list) and isinstance(new, list):
        pairs = _by_name(old), _by_name(new)
        if None not in pairs and pairs[0] != pairs[1]:
            old, new = pairs
    if isinstance(old, dict) and isinstance(new, dict):
        # What was not there yet, and is left at nothing, changes nothing.
        added = [name for name in new if name not in old and not _is_nothing(name, new[name])]
        for name in [*old, *added]:
            inner = f"{place}.{name}" if place else name
            yield from _changes(old.get(name), new.get(name), inner)
    elif isinstance(old, list) and isinstance(new, list) and _are_long(old, new):
        if len(old) != len(new):
            yield f"{place} had {len(old)} entries, now {len(new)}"
        for number, pair in enumerate(zip(old, new, strict=False)):
            yield from _changes(*pair, f"{place}[{number}]")
    else:
        yield f"{_told(place)} was {_shown(old)}, now {_shown(new)}"


def _by_name(values: list[Any]) -> dict[str, Any] | None:
    """``[[name, value], ...]``, as dataclasses record mappings, by name; None of another list."""
    pairs = all(isinstance(each, list) and len(each) == 2 for each in values)
    if not pairs or not all(isinstance(name, str) for name, _ in values):
        return None
    found = dict(values)
    return found if len(found) == len(values) else None


def _are_long(*lists: list[Any]) -> bool:
    objects = any(isinstance(each, dict) for values in lists for each in values)
    return objects or any(len(repr(values)) > _LONG for values in lists)


def _is_nothing(setting: str, value: Any) -> bool:
    return value in (None, [], {}) or value == defaults_of(TrainConfig).get(setting, ...)


def _told(place: str) -> str:
    """A setting by the name of its flag, and anything else by its place in the record."""
    prefix = next((prefix for prefix in _OF_SETTINGS if place.startswith(prefix)), "")
    return place.removeprefix(prefix)


def _shown(value: Any) -> str:
    return shortened(repr(value), _LONG)
