"""A data set of the Hugging Face hub, or of a folder, where the package ``datasets`` is there."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mtl_jax.core.errors import UserError, first_line
from mtl_jax.data.columns import Label
from mtl_jax.data.kinds import LabelKind
from mtl_jax.data.sources.base import Fields, Rows, Source, Stream
from mtl_jax.data.sources.values import UnusableError, label_of, text_of

PREFIX = "hub:"
T = TypeVar("T")
_ROWS = 4096
_SPLITS = ("train", "validation", "test")


def open_dataset(name: str, fields: Fields) -> Source:
    """Loads a data set, which ``datasets`` fetches once and maps from files.

    Args:
        name: ``hub:NAME`` or ``hub:NAME:CONFIGURATION``, where NAME is that of the hub or a folder.
        fields: The columns that are read.

    Raises:
        UserError: The package is not there, or the data set is not, or lacks a column.
    """
    splits = _load(name)
    fields.check(name, splits["train"].column_names)
    names = {
        task: _class_names(splits["train"], column, fields.kinds[task])
        for task, column in fields.labels.items()
    }

    def place(split: str, row: int) -> str:
        return f"{name}, {split} example {row}"

    def rows(split: str) -> Iterator[Rows]:
        named = functools.partial(place, split)
        for start, batch in _batches(name, split, splits[split], fields):
            labels: dict[str, list[Label]] = {}
            for task, column in fields.labels.items():
                label = functools.partial(_label, column, names[task], fields.kinds[task])
                labels[task] = list(_each(batch[column], label, start, named))
            texts = [
                list(_each(batch[column], functools.partial(text_of, column), start, named))
                for column in fields.texts
            ]
            yield Rows(fields.joined(texts), labels, range(start, start + len(texts[0])))

    digest = functools.cache(lambda split: _digest(name, split, splits[split], fields))

    def fingerprint() -> str:
        lines = [f"{split}:{digest(split)}\n" for split in splits if split != "test"]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    return Source(
        name=name,
        fingerprint=fingerprint,
        splits=tuple(splits),
        classes={
            task: of
            for task, kind in fields.kinds.items()
            if kind.has_classes and (of := names[task]) is not None
        },
        notes=(),
        stream=lambda split: Stream(rows(split), functools.partial(place, split)),
        digest=digest,
        size=lambda split: int(splits[split].data.nbytes),
    )


def _load(name: str) -> dict[str, Any]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError as error:
        raise UserError(
            f"--dataset {name} needs the package datasets: pip install datasets, or name files "
            "with --train-file"
        ) from error
    path, _, configuration = name.removeprefix(PREFIX).partition(":")
    try:
        datasets.disable_progress_bars()
        # Before release 4 it would ask on standard input whether a script of the data set may run.
        found = datasets.load_dataset(path, configuration or None, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"cannot load {name} ({first_line(error)}): correct the name, add :CONFIGURATION where "
            "it has several, or connect to the network"
        ) from error
    splits = {split: found[split] for split in _SPLITS if split in found}
    if "train" not in splits:
        there = ", ".join(map(str, found))
        raise UserError(f"{name} has no train split (it has {there}): name another data set")
    return splits


def _class_names(split: Any, column: str, kind: LabelKind) -> tuple[str, ...] | None:
    """The names of a label column's classes, None where the data must tell them."""
    feature = split.features[column]
    if kind.lists:
        # A list of features is one, or has one.
        feature = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    names = getattr(feature, "names", None)
    return None if names is None else tuple(names)


def _each(
    values: list[Any], use: Callable[[Any], T], start: int, place: Callable[[int], str]
) -> Iterator[T]:
    """What is made of the value of each row, from row ``start`` on."""
    row = start
    try:
        for value in values:
            yield use(value)
            row += 1
    except UnusableError as error:
        raise UserError(f"{place(row)}: {error}") from error


def _label(column: str, names: tuple[str, ...] | None, kind: LabelKind, value: Any) -> Label:
    if names is None:
        return label_of(column, value, kind)
    try:
        return kind.declared(value, names)
    except ValueError as error:
        raise UnusableError(f"{column!r} is {error}") from error


def _batches(
    name: str, split: str, data: Any, fields: Fields
) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    data = data.select_columns(list(fields.columns))
    for start in range(0, len(data), _ROWS):
        try:
            batch = data[start : start + _ROWS]
        except Exception as error:
            raise UserError(
                f"cannot read {name}, {split} ({first_line(error)}): delete its files in the cache "
                "of datasets, to download them again"
            ) from error
        yield start, batch


def _digest(name: str, split: str, data: Any, fields: Fields) -> str:
    hasher = hashlib.sha256(json.dumps(fields.record()).encode())
    for _, batch in _batches(name, split, data, fields):
        hasher.update(json.dumps(batch, default=str).encode())
    return hasher.hexdigest()
