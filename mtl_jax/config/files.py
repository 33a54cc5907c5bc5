"""Settings from a YAML or JSON file, with the names of the flags; flags override them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from mtl_jax.config.data import refuse_blank
from mtl_jax.config.earlier import FLAGS, renamed
from mtl_jax.config.extensions import named_paths
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.flag_mistakes import flat_fields
from mtl_jax.core.imported import refuse_untrusted
from mtl_jax.core.json_files import read_text
from mtl_jax.core.paths import expanded

_FLAG, _TRUST = "--config", "--trust"
# What is frozen.
_WHAT = ("scenario", "recipe")
_REMEDY = "write one flag in each line, such as epochs: 3"


def with_file(argv: Sequence[str], kind: type, *, of_train: bool = False) -> list[str]:
    """Puts the flags of a ``--config`` file before those of the command line, which override it.

    Of the record of a run what ``kind`` has not is left out.

    Args:
        argv: The flags.
        kind: The dataclass whose fields, and those of the dataclasses in it, they set.
        of_train: Whether any file may be one of ``train``, of which as much is left out.

    Raises:
        UserError: The file can't be read, has a key that is no flag, or names code of a module
            that no ``--trust`` does.
    """
    file, rest = _taken(argv, _FLAG)
    if file is None:
        return list(argv)
    if not file:
        raise UserError(f"{_FLAG} needs a file name: give it one, or leave it out")
    refuse_blank("config", file)
    path = expanded(file[-1])
    settings, is_record = _settings(path)
    known = _fields(kind)
    left_out: Set[str] = set()
    if is_record or of_train:
        left_out = _fields(TrainConfig).keys() - known.keys()
        settings = _without(settings, left_out)
    trust, rest = _taken(rest, _TRUST)
    refuse_untrusted(named_paths(settings), trust or (), str(path))
    flags: list[str] = []
    # The two cannot be used together: a flag stands for whichever of them the file has.
    given = {name for name in _WHAT if _taken(rest, f"--{name}")[0] is not None}
    for name in _WHAT if given else ():
        settings.pop(name, None)
    for name, value in settings.items():
        key = name.replace("-", "_")
        if key not in known:
            close = difflib.get_close_matches(key, [*known, *left_out], n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            if now := FLAGS.get(key.replace("_", "-")):
                hint = f"now it is {now}; "
            raise UserError(f"{path}: there is no setting {name!r}: {hint}see --help for all")
        flags += _as_flags(key, value, path)
    return [*flags, *rest]


def _taken(argv: Sequence[str], flag: str) -> tuple[list[str] | None, list[str]]:
    """The values of a flag, None where it is not there, and the other arguments."""
    values: list[str] | None = None
    rest: list[str] = []
    inside = False
    for word in argv:
        if word == flag or word.startswith(f"{flag}="):
            values = values or []
            inside = word == flag
            values += [] if inside else [word.partition("=")[2]]
        elif inside and not word.startswith("--"):
            values = [*(values or []), word]
        else:
            inside = False
            rest.append(word)
    return values, rest


class _Switch(str):
    """A word that is a switch where a flag is one, and else a name as it is written."""

    @property
    def on(self) -> bool:
        return self.lower() in ("yes", "true", "on")


def _from_yaml(text: str) -> Any:
    """What YAML holds, but that a name stays the text that is written: ``on``, ``no``, ``007``."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def switch(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Switch:
        return _Switch(loader.construct_scalar(node))

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Iterator[dict[str, Any]]:
        found: dict[str, Any] = {}
        yield found
        loader.flatten_mapping(node)
        for key, value in node.value:
            # A list or an object as a key is refused with what it is.
            plain = isinstance(key, yaml.ScalarNode)
            name = key.value if plain else str(loader.construct_object(key, deep=True))
            found[name] = loader.construct_object(value, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:bool", switch)
    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    return yaml.load(text, Loader)  # noqa: S506  (it makes no object but these)


def _without(settings: Mapping[str, Any], names: Set[str]) -> dict[str, Any]:
    return {name: v for name, v in settings.items() if name.replace("-", "_") not in names}


def _settings(path: Path) -> tuple[dict[str, Any], bool]:
    """The settings in a file, and whether it is a run's config.json."""
    import yaml

    text = read_text(path, _REMEDY)
    try:
        found = json.loads(text) if path.suffix == ".json" else _from_yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is neither YAML nor JSON ({reason}): {_REMEDY}") from error
    if found is None:
        return {}, False
    is_record = isinstance(found, Mapping) and {"settings", "phases"} <= found.keys()
    if is_record:
        # Where it ran is no setting of another run.
        limits = (found.get("environment") or {}).get("limits") or {}
        found = {**renamed(found["settings"]), **limits}
    elif isinstance(found, Mapping) and {"settings", "study"} <= found.keys():
        raise UserError(
            f"{path} is the record of a study, not of a run: name that of one of its arms"
        )
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path} does not contain settings by name: {_REMEDY}")
    return dict(_flat(found)), is_record


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in ("data", "watch") and isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


def defaults_of(kind: type) -> dict[str, Any]:
    """The default of each setting by its name, as JSON has it."""
    found = ((name, field.default) for name, field in _fields(kind).items())
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found}


def _fields(kind: type) -> dict[str, Any]:
    return {field.name: field for field in flat_fields(kind)}


def _as_flags(name: str, value: Any, path: Path) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, _Switch):
        value = value.on
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, Mapping):
        value = [
            f"{key}={json.dumps(each) if isinstance(each, Mapping) else each}"
            for key, own in value.items()
            for each in (own if isinstance(own, list) else [own])
        ]
    if name == "scenario" and isinstance(value, list):
        value = json.dumps(value)
    if isinstance(value, list):
        if any(isinstance(each, (list, Mapping)) for each in value):
            raise UserError(f"{path}: {name} is a list of lists: write plain values")
        return [flag, *map(str, value)]
    return [flag, str(value)]


def flags_of(settings: Mapping[str, Any], kind: type) -> list[str]:
    """The flags that make settings of the defaults.

    Args:
        settings: As a run's ``config.json`` has them.
        kind: The dataclass of the settings and their defaults.
    """
    known, flags = _fields(kind), []
    for name, value in _flat(settings):
        default = known[name].default if name in known else None
        default = list(default) if isinstance(default, tuple) else default
        if value is not None and value != default:
            flags += _as_flags(name, value, Path("config.json"))
    return flags
