"""JSON and JSON Lines files of a run or a study; of several processes the first writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mtl_jax.core import distributed
from mtl_jax.core.atomic_write import atomic_write, first, refuse_other_kind
from mtl_jax.core.errors import UserError, cannot_read, cannot_write, first_line, shortened

OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of any JSON object."""


def read_json(path: Path, schema: Mapping[str, Any], remedy: str) -> Any:
    """Reads a JSON file and holds it against a schema.

    Whatever a file that others write may hold, it ends in no more than one line.

    Args:
        path: The file, UTF-8.
        schema: A JSON Schema (draft 2020-12) of what it must hold.
        remedy: What to do where it holds something else, such as "fetch the checkpoint again".

    Raises:
        UserError: The file is missing, can't be read, is no JSON, repeats a key of an object, or
            does not follow the schema; the message names the file and the place in it.
    """
    return parse_json(read_text(path, remedy), schema, str(path), remedy)


def read_text(path: Path, remedy: str) -> str:
    """Reads a text file of UTF-8; the arguments and errors are those of ``read_json``."""
    try:
        refuse_other_kind(path)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise cannot_read(path, error) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({first_line(error)}): {remedy}") from error


def parse_json(text: str, schema: Mapping[str, Any], origin: str, remedy: str) -> Any:
    """As ``read_json``, of a text; ``origin`` names it in an error."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin} is not valid JSON ({first_line(error)}): {remedy}") from error
    check_json(value, schema, origin, remedy)
    return value


def check_json(value: Any, schema: Mapping[str, Any], origin: str, remedy: str) -> None:
    """As ``read_json``, of what has been read; ``origin`` names it in an error."""
    from jsonschema import Draft202012Validator, exceptions

    validator = Draft202012Validator(schema)
    if problem := exceptions.best_match(validator.iter_errors(value)):
        place = problem.json_path.removeprefix("$").removeprefix(".")
        raise UserError(
            f"{origin}: {place + ': ' if place else ''}{shortened(problem.message, 200)}: {remedy}"
        )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What JSON makes of an object, of whose repeated keys it would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; of several processes the first does."""
    _replace(path, _text(value))


def write_first(path: Path, value: Any) -> None:
    """The same, of a file that is not there: of many processes that write it at once, one does.

    Raises:
        UserError: It can't be written.
    """
    try:
        with first(path) as draft:
            draft.write_text(_text(value), encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error


def _text(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _replace(path: Path, text: str) -> None:
    if not distributed.is_main():
        return
    try:
        with atomic_write(path) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error


def read_lines(path: Path, schema: Mapping[str, Any] = OBJECT) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, less a last line that a kill left unfinished.

    Args:
        path: The file; where there is none, there is no line.
        schema: A JSON Schema of each line, which asks for an object.

    Raises:
        UserError: A line is damaged, or the file can't be read.
    """
    records, damage = parsed_lines(path, schema)
    if damage:
        raise UserError(
            f"{path}, line {len(records) + 1} is damaged ({damage}): remove that line and run "
            "the command that wrote the file again, which replaces it"
        )
    return records


def parsed_lines(
    path: Path, schema: Mapping[str, Any] = OBJECT
) -> tuple[list[dict[str, Any]], str]:
    """The objects up to the first damaged line, and in what way that is, if there is one.

    Args:
        path: As of ``read_lines``.
        schema: As of ``read_lines``.

    Raises:
        UserError: The file can't be read.
    """
    from jsonschema import Draft202012Validator, exceptions

    records: list[dict[str, Any]] = []
    try:
        refuse_other_kind(path)
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return records, ""
    except OSError as error:
        raise cannot_read(path, error) from error
    validator = Draft202012Validator(schema)
    for line in lines:
        try:
            record = json.loads(line.decode("utf-8"), object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            return records, first_line(error)
        if problem := exceptions.best_match(validator.iter_errors(record)):
            return records, shortened(problem.message, 200)
        records.append(record)
    return records, ""


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends an object to a JSON Lines file; of several processes the first does."""
    if not distributed.is_main():
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def rewrite_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replaces a JSON Lines file, whole or not at all; of several processes the first does."""
    _replace(path, "".join(json.dumps(record) + "\n" for record in records))
