"""What is wrong with a command line, in one line: the flag, and the remedy.

The parser's own messages repeat the help of each flag that it thinks of.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from mtl_jax.core.errors import shortened

_KINDS = {"INT": ("a whole number", "whole numbers"), "FLOAT": ("a number", "numbers")}
# What the parser says behind the words that it does not know.
_AFTER = "(?= Perhaps you meant:| Arguments similar to | Available subcommands:| For full helptext)"
_FORM = r"Error parsing (--[\w-]+): .* Argument helptext: \1 (\[.*?\]\]|\S+)"


def in_words(
    kind: Any, argv: Sequence[str], prog: str, told: str, earlier: Mapping[str, str]
) -> str:
    """What is wrong with these flags.

    Args:
        kind: The dataclass that they are for, or a union of several, one for each subcommand.
        argv: The flags.
        prog: How the command is called.
        told: What the parser says of them, as one line; it stays where no more is known.
        earlier: What took the place of a flag, by the name of that.
    """
    if commands := _commands(kind):
        named = argv[0] if argv else ""
        if named not in commands:
            close = difflib.get_close_matches(named, [*commands, "--help", "--version"], n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            what = (
                f"there is no command {shortened(named, 100)!r}"
                if named
                else "a command is missing"
            )
            return f"{what}: {hint}use {_joined(commands, 'or')}"
        kind, argv, prog = commands[named], argv[1:], f"{prog} {named}"
    flags, remedy = dict(_flags(kind)), f"{prog} --help"
    if unknown := _unknown(flags, argv):
        hints = [_instead(flag, flags, earlier) for flag in unknown]
        hint = f"did you mean {_joined(hints, 'and')}? " if all(hints) else ""
        what = "there is no flag" if len(unknown) == 1 else "there are no flags"
        return f"{what} {shortened(_joined(unknown, 'and'), 300)}: {hint}{remedy} lists all"
    given = {_plain(word) for word in argv}
    lacking = [flag for flag, needed in flags.items() if needed and flag not in given]
    if "Missing from" in told and any(f" {flag} " in told for flag in lacking):
        are = "is" if len(lacking) == 1 else "are"
        return f"{_joined(lacking, 'and')} {are} missing: see {remedy}"
    if found := re.search(r"Missing from .*?: (?!-)\S+ (.+) \(required\)", told):
        return f"one word is missing, for the {found[1]}: see {remedy}"
    if found := re.search(r"Missing value for argument '\(?'?(--[\w-]+)'", told):
        return f"{found[1]} needs a value: see {remedy}"
    if found := re.search(r"invalid choice (.+) for argument '(.+?)'\. .*? of \((.+?),?\)", told):
        choices = [each.strip(" '") for each in found[3].split(",")]
        return f"{found[2]} {shortened(found[1], 100)} is not known: use {_joined(choices, 'or')}"
    if found := re.search(_FORM, told):
        flag, form = found.groups()
        return f"{shortened(_given(flag, argv), 100)} is not {_form_in_words(form)}: see {remedy}"
    if found := re.search(rf"Unrecognized options: (.+?){_AFTER}", told):
        words = f"{shortened(found[1], 100)!r} is not expected here"
        return f"{words}: a value stands behind its flag, see {remedy}"
    return told


def _commands(kind: Any) -> dict[str, Any]:
    """The dataclasses of a union by their subcommands."""
    members = (get_args(member) for member in get_args(kind))
    return {settings[1].name: settings[0] for settings in members if len(settings) > 1}


def flat_fields(kind: type) -> Iterator[dataclasses.Field[Any]]:
    """The fields of a dataclass, and in place of one with a dataclass those of that: the flags."""
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default) and not isinstance(field.default, type):
            yield from flat_fields(type(field.default))
        else:
            yield field


def _flags(kind: Any) -> Iterator[tuple[str, bool]]:
    """Each flag, and whether it has to be given."""
    for field in flat_fields(kind):
        flag = f"--{field.name.replace('_', '-')}"
        needed = field.default is field.default_factory is dataclasses.MISSING
        yield flag, needed
        if isinstance(field.default, bool):
            yield f"--no-{flag.removeprefix('--')}", False


def _plain(word: str) -> str:
    """The flag in a word such as ``--max_length=64``."""
    return word.partition("=")[0].replace("_", "-")


def _unknown(flags: Mapping[str, bool], argv: Sequence[str]) -> list[str]:
    """The words that look like flags and are none, also with one dash too few."""
    found = {}
    for word in map(_plain, argv):
        long = re.match(r"--[A-Za-z]", word) and word not in flags
        if long or (word[:1] == "-" and f"-{word}" in flags):
            found[word] = None
    return list(found)


def _instead(flag: str, flags: Mapping[str, bool], earlier: Mapping[str, str]) -> str:
    """What is meant by a flag that there is not; nothing where that can't be told."""
    name = flag.lower().lstrip("-")
    if name in earlier:
        return earlier[name]
    similar = functools.partial(difflib.get_close_matches, f"--{name}", flags, n=1)
    longer = [each for each in flags if each.endswith(f"-{name}")]
    found = similar(cutoff=0.9) or longer or similar(cutoff=0.7)
    return _joined(found, "or") if found else ""


def _given(flag: str, argv: Sequence[str]) -> str:
    """A flag with the values that it was given last."""
    found: list[str] = []
    at = False
    for word in argv:
        if word.startswith("--"):
            at = _plain(word) == flag
            found = [word] if at else found
        elif at:
            found.append(word)
    return " ".join(found) or flag


def _form_in_words(form: str) -> str:
    """What ``{None}|INT`` or ``[INT [INT ...]]`` stand for."""
    *_, last = form.strip("[]").split(" [")[0].rpartition("|")
    if last not in _KINDS:
        return f"of the form {form}"
    several = form.startswith("[")
    return _KINDS[last][several] + (" or None" if "{None}" in form else "")


def _joined(names: Sequence[str] | Mapping[str, Any], last: str) -> str:
    """``a, b or c``."""
    *first, end = names
    return f"{', '.join(first)} {last} {end}" if first else end
