"""What every source becomes: texts and numbered labels, split by split."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from typing import TYPE_CHECKING

import numpy as np

from mtl_jax.config import TASKS, DataConfig
from mtl_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mtl_jax.data.table import Source, Table

MISSING = -1
"""The label of an example that has none for a task."""
UNLABELLED = ("unlabelled",)
"""The classes of a task that has no column."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of one split."""

    texts: list[str]
    """n texts"""
    labels: dict[str, np.ndarray]
    """per task an int32 [n]: indices into its classes, MISSING where there is no label"""
    groups: np.ndarray | None
    """str [n]: where each example comes from, for metrics by source; None if unknown"""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """Picks examples.

        Args:
            indices: Integers [m]; the result has them in this order.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        return Examples(
            texts=[self.texts[i] for i in chosen],
            labels={task: labels[chosen] for task, labels in self.labels.items()},
            groups=None if self.groups is None else self.groups[chosen],
        )


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The splits of one data source. Each is read when it is asked for, not before."""

    name: str
    classes: dict[str, tuple[str, ...]]
    """the class names of every task, in the order of their numbers"""
    splits: tuple[str, ...]
    """those there are, of train, validation and test"""
    fingerprint: str
    """digest of the data source as a whole, whatever part of it the settings use"""
    _read: Callable[[str], Examples] = dataclasses.field(repr=False)
    _limits: dict[str, int | None] = dataclasses.field(repr=False)
    _source_notes: tuple[str, ...] = dataclasses.field(repr=False)

    def read(self, split: str) -> Examples:
        """Reads a split, or what the settings keep of it.

        A limit keeps the examples with the smallest SHA-256 of position and text, in
        their order in the source: the same ones whatever the seed.

        Raises:
            UserError: There is no such split, or something is wrong with its contents.
        """
        if split not in self.splits:
            raise UserError(
                f"{self.name} has no {split} split: use one of {', '.join(self.splits)}"
            )
        examples = self._read(split)
        limit = self._limits[split]
        if limit is None or limit >= len(examples):
            return examples
        digests = [_digest(f"{i}\n{text}") for i, text in enumerate(examples.texts)]
        order = sorted(range(len(digests)), key=digests.__getitem__)
        return examples.take(sorted(order[:limit]))

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about the data, in words; reads train and validation, never test."""
        notes = list(self._source_notes)
        for split in self.splits:
            if split != "test":
                notes += _describe(split, self._read(split), self.classes)
        return tuple(notes)


def load_corpus(config: DataConfig) -> Corpus:
    """Opens the data that the settings name.

    Without a validation split, a tenth of the training examples is set aside as one, by
    the SHA-256 of the text, so that identical texts land on the same side.

    Args:
        config: Files, if it names a training file; else a TFDS data set.

    Raises:
        UserError: The data cannot be found or fetched, or something is wrong with them.
    """
    columns = _label_columns(config.label_columns)
    for name in ("max_train_examples", "max_evaluation_examples"):
        limit = getattr(config, name)
        if limit is not None and limit < 1:
            raise UserError(f"--{name.replace('_', '-')} {limit} must be at least 1")
    source = _source(config, columns)
    table = functools.cache(source.read)
    classes = {}
    for task in TASKS:
        if task not in columns:
            classes[task] = UNLABELLED
        elif task in source.classes:
            classes[task] = source.classes[task]
        else:
            classes[task] = _learn_classes(table("train").labels[task])

    @functools.cache
    def read(split: str) -> Examples:
        if "validation" in source.splits or split == "test":
            return _number(table(split), classes, columns, split)
        examples = _number(table("train"), classes, columns, "train")
        aside = _set_aside(examples.texts, source.name)
        return examples.take(np.flatnonzero(aside if split == "validation" else ~aside))

    carved = "validation" not in source.splits
    return Corpus(
        name=source.name,
        classes=classes,
        splits=("train", "validation", *(s for s in source.splits if s == "test")),
        fingerprint=source.fingerprint,
        _read=read,
        _limits={
            "train": config.max_train_examples,
            "validation": config.max_evaluation_examples,
            "test": config.max_evaluation_examples,
        },
        _source_notes=source.notes
        + (("validation: a tenth of the training texts, set aside by hash",) if carved else ()),
    )


def _source(config: DataConfig, columns: dict[str, str]) -> Source:
    if config.train_file is not None:
        from mtl_jax.data import files

        return files.open_files(config, columns)
    for name in ("validation_file", "test_file"):
        if getattr(config, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} needs --train-file: name that one too")
    from mtl_jax.data import tfds_source

    if config.dataset == "sentences":
        from mtl_jax.data import sentences

        return sentences.open_sentences(config.text_column, columns)
    return tfds_source.open_dataset(config.dataset, config.text_column, columns)


def _label_columns(pairs: Iterable[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for pair in pairs:
        task, _, column = pair.partition("=")
        if not task or not column:
            raise UserError(f"--label-columns {pair!r} is not a pair: write task=column")
        if task not in TASKS:
            raise UserError(
                f"--label-columns {pair!r}: there is no task {task!r}: use {' or '.join(TASKS)}"
            )
        if task in columns:
            raise UserError(f"--label-columns names the task {task!r} twice: name it once")
        columns[task] = column
    if not columns:
        raise UserError(f"--label-columns is empty: name a column for {' or '.join(TASKS)}")
    return columns


def _learn_classes(labels: list[str | None]) -> tuple[str, ...]:
    """The distinct labels, numbers first and by value, then the others by spelling."""

    def order(label: str) -> tuple[bool, float, str]:
        number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", label, re.ASCII)
        return (number is None, float(label) if number else 0.0, label)

    return tuple(sorted({label for label in labels if label is not None}, key=order))


def _number(
    table: Table, classes: dict[str, tuple[str, ...]], columns: dict[str, str], split: str
) -> Examples:
    numbered = {task: np.full(len(table.texts), MISSING, np.int32) for task in TASKS}
    for task, column in columns.items():
        numbers = {name: number for number, name in enumerate(classes[task])}
        for i, label in enumerate(table.labels[task]):
            if label is None:
                continue
            if label not in numbers:
                known = ", ".join(classes[task][:20]) + ", ..." * (len(numbers) > 20)
                raise UserError(
                    f"{table.place(i)}: {task} label {label!r} is not among those of the training "
                    f"data ({known}): correct it, or add such examples to the training data"
                )
            numbered[task][i] = numbers[label]
        if split == "train" and not np.any(numbered[task] != MISSING):
            raise UserError(
                f"{table.place(0)} and after: no row has a {task} label in {column!r}: "
                f"name another column with --label-columns, or leave {task} out of it"
            )
    groups = None if table.groups is None else np.asarray(table.groups, dtype=np.str_)
    return Examples(table.texts, numbered, groups)


def _set_aside(texts: list[str], name: str) -> np.ndarray:
    """A mask of about a tenth of the texts, at least one and not all of them."""
    digests = [_digest(text) for text in texts]
    distinct = set(digests)
    if len(distinct) < 2:
        raise UserError(
            f"{name} holds one distinct text, of which no validation split can be set aside: "
            "add examples or name a --validation-file"
        )
    chosen = {digest for digest in distinct if digest % 10 == 0}
    if not chosen or chosen == distinct:
        chosen = {min(distinct)}
    return np.asarray([digest in chosen for digest in digests])


def _describe(split: str, examples: Examples, classes: dict[str, tuple[str, ...]]) -> list[str]:
    notes = []
    if empty := sum(not text.strip() for text in examples.texts):
        notes.append(f"{split}: {empty} of {len(examples)} texts are empty")
    for task, labels in examples.labels.items():
        missing = int(np.sum(labels == MISSING))
        if missing and classes[task] != UNLABELLED:
            notes.append(f"{split}: {missing} of {len(examples)} have no {task} label")
    return notes


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest())
