"""JSON and JSON Lines files of a run or a study; of several processes the first writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtl_jax import processes
from mtl_jax.errors import UserError, cannot_write, first_line
from mtl_jax.whole import whole


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; of several processes the first does."""
    _replace(path, json.dumps(value, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    if not processes.is_main():
        return
    try:
        with whole(path) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, less a last line that a kill left unfinished.

    Raises:
        UserError: A line is damaged.
    """
    records, damage = parsed_lines(path)
    if damage:
        raise UserError(
            f"{path}, line {len(records) + 1} is damaged ({damage}): remove it and run the command "
            "again that wrote the file, which makes up for it"
        )
    return records


def parsed_lines(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The objects up to the first damaged line, and in what way that is, if there is one."""
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records, ""
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            records.append(dict(json.loads(line.decode("utf-8"))))
        except (ValueError, TypeError) as error:
            return records, first_line(error)
    return records, ""


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends an object to a JSON Lines file; of several processes the first does."""
    if not processes.is_main():
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def rewrite_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replaces a JSON Lines file, whole or not at all; of several processes the first does."""
    _replace(path, "".join(json.dumps(record) + "\n" for record in records))
