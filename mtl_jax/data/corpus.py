"""What every source becomes: texts and numbered labels, split by split."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from typing import TYPE_CHECKING

import numpy as np

from mtl_jax.config.data import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data import checks
from mtl_jax.data.kinds import KINDS, blank, has_label
from mtl_jax.data.labels import as_array
from mtl_jax.data.pairs import Pair
from mtl_jax.data.sources.registry import open_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mtl_jax.config.tasks import Kind
    from mtl_jax.data.sources.base import Source, Table


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of one split."""

    texts: list[str]
    """n texts; a ``Pair`` where an example has two"""
    labels: dict[str, np.ndarray]
    """per task one label to a text, as ``kinds`` tells: int32 [n], indices into its classes,
    MISSING where there is no label; int8 [n, classes]; or float64 [n]"""
    groups: np.ndarray | None
    """str [n]: where each example comes from, for metrics by source; None if unknown"""
    sources: np.ndarray | None = None
    """int32 [n]: which of the corpus's data sets each example is of; None where there is one"""
    rows: np.ndarray | None = None
    """int64 [n]: which row of its data set's split each example is, as they were read; of a
    validation split that was set aside, of the training split. None if unknown"""

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
            sources=None if self.sources is None else self.sources[chosen],
            rows=None if self.rows is None else self.rows[chosen],
        )

    def labelled(self, tasks: Sequence[str] | None = None) -> np.ndarray:
        """Bool [n]: which examples have a label for at least one of ``tasks`` (all)."""
        tasks = tuple(self.labels) if tasks is None else tasks
        return np.any([has_label(self.labels[task]) for task in tasks], axis=0)


class _DataSet:
    """One data set with the classes of the tasks that it serves.

    Without a validation split, a tenth of the training examples is set aside as one, by
    the SHA-256 of the text, so that identical texts land on the same side, those of another
    data set included.
    """

    def __init__(self, source: Source, columns: dict[str, str], kinds: Mapping[str, Kind]):
        self.source, self.columns, self.kinds = source, columns, kinds
        self.carved = "validation" not in source.splits
        self.splits = ("train", "validation", *(s for s in source.splits if s == "test"))
        self.read = functools.cache(self._read)
        self._table = functools.cache(source.read)
        self.classes = {
            task: source.classes[task]
            if task in source.classes
            else KINDS[kinds[task]].classes(self._table("train").labels[task])
            for task in columns
        }

    def _read(self, split: str) -> Examples:
        if not self.carved or split == "test":
            return self._numbered(split)
        examples = self._numbered("train")
        aside = _set_aside(examples.texts, self.source.name)
        return examples.take(np.flatnonzero(aside if split == "validation" else ~aside))

    def _numbered(self, split: str) -> Examples:
        table = self._table(split)
        groups = None if table.groups is None else np.asarray(table.groups, dtype=np.str_)
        rows = np.arange(len(table.texts), dtype=np.int64)
        return Examples(table.texts, self._arrays(table, split), groups, rows=rows)

    def _arrays(self, table: Table, split: str) -> dict[str, np.ndarray]:
        return {
            task: as_array(table, task, self.kinds[task], column, self.classes[task], split)
            for task, column in self.columns.items()
        }

    def judged(self, split: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Per task the labels of a split, and what to know of how it was read; no text is kept.

        Nothing is read where the source declares all classes: no label can be another then.

        Raises:
            UserError: The split can't be read, or has a label that training has not.
        """
        if self.columns.keys() <= self.source.classes.keys():
            return {}, ()
        table = self.source.read(split)
        return self._arrays(table, split), table.notes

    def notes(self) -> list[str]:
        """What to know about it, in words; reads train and validation, never test."""
        notes = [*self.source.notes, *self._table("train").notes]
        if not self.carved:
            notes += self._table("validation").notes
        if self.carved:
            notes.append("validation: a tenth of the training texts, set aside by hash")
        columns = list(self.columns.values())
        notes += [
            f"warning: {' and '.join(task for task, own in self.columns.items() if own == column)} "
            f"have the same label column, {column}"
            for column in dict.fromkeys(columns)
            if columns.count(column) > 1
        ]
        for split in ("train", "validation"):
            examples = self.read(split)
            if odd := sum("\0" in text for text in examples.texts):
                notes.append(
                    f"warning: {split}: {odd} of {len(examples)} texts have NUL characters, which "
                    "the tokenizer may drop"
                )
            if empty := sum(not text.strip() for text in examples.texts):
                notes.append(f"{split}: {empty} of {len(examples)} texts are empty")
            if halves := sum(
                isinstance(text, Pair) and not (text.first.strip() and text.second.strip())
                for text in examples.texts
            ):
                notes.append(
                    f"warning: {split}: {halves} of {len(examples)} pairs lack one of their texts"
                )
            missing = {
                task: int(np.sum(~has_label(examples.labels[task]))) for task in self.columns
            }
            notes += [
                f"{split}: {count} of {len(examples)} have no {task} label"
                for task, count in missing.items()
                if count
            ]
        return notes


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The splits of the data. Each is read when it is asked for, not before."""

    name: str
    classes: dict[str, tuple[str, ...]]
    """the class names of every task, in the order of their numbers; none of a regression"""
    kinds: dict[str, Kind]
    """the kind of every task"""
    splits: tuple[str, ...]
    """those there are, of train, validation and test"""
    fingerprint: str
    """digest of the data as a whole, whatever part of them the settings use"""
    sources: tuple[str, ...]
    """the names of the data sets, in the order of their numbers"""
    _data_sets: tuple[_DataSet, ...] = dataclasses.field(repr=False)
    _limits: dict[str, int | None] = dataclasses.field(repr=False)
    _fractions: dict[str, float] = dataclasses.field(repr=False)

    def read(self, split: str) -> Examples:
        """Reads a split, or what the settings keep of it.

        A limit keeps the examples with the smallest SHA-256 of position and text, in
        their order in the source: the same ones whatever the seed. Of the training split
        only examples with a label are kept; of a task whose labels are thinned, those with
        the smallest SHA-256 of position, task and text: those of a smaller part are among
        those of a larger one.

        Raises:
            UserError: There is no such split, or something is wrong with its contents.
        """
        return self._kept(split)[0]

    def _kept(self, split: str) -> tuple[Examples, list[str]]:
        """What is kept of a split, and in words what is not."""
        if split not in self.splits:
            raise UserError(
                f"{self.name} has no {split} split: use one of {', '.join(self.splits)}"
            )
        examples = self._whole(split)
        training, limit, texts = split == "train", self._limits[split], examples.texts
        kept = np.flatnonzero(examples.labelled()) if training else np.arange(len(examples))
        notes = _left_out(len(examples), len(kept), "label")
        if limit is not None and limit < len(kept):
            kept = _smallest(kept, limit, lambda i: f"{i}\n{texts[i]}")
        if not training or not self._fractions:
            return (examples.take(kept) if len(kept) < len(examples) else examples), notes
        labels = dict(examples.labels)
        for task, fraction in self._fractions.items():
            there = kept[has_label(labels[task][kept])]
            count = min(max(round(fraction * len(there)), 1), len(there))
            chosen = _smallest(there, count, lambda i, task=task: f"{i}\n{task}\n{texts[i]}")
            thinned = blank(labels[task], (len(examples),))
            thinned[chosen] = labels[task][chosen]
            labels[task] = thinned
            notes.append(f"train: {count} of {len(there)} {task} labels remain (--label-fraction)")
        thinned = dataclasses.replace(examples, labels=labels).take(kept)
        still = np.flatnonzero(thinned.labelled())
        return thinned.take(still), notes + _left_out(len(kept), len(still), "label that remains")

    def _whole(self, split: str) -> Examples:
        """The examples of all data sets, one after the other."""
        if len(self._data_sets) == 1:
            return self._data_sets[0].read(split)
        parts = [(i, d, d.read(split)) for i, d in enumerate(self._data_sets) if split in d.splits]
        return Examples(
            texts=[text for _, _, part in parts for text in part.texts],
            labels={
                task: np.concatenate(
                    [
                        part.labels[task] if task in part.labels else self._no_labels(task, part)
                        for _, _, part in parts
                    ]
                )
                for task in self.classes
            },
            groups=np.concatenate(
                [
                    np.full(len(p), d.source.name) if p.groups is None else p.groups
                    for _, d, p in parts
                ]
            ),
            sources=np.concatenate([np.full(len(p), i, np.int32) for i, _, p in parts]),
            rows=np.concatenate(
                [np.arange(len(p)) if p.rows is None else p.rows for _, _, p in parts]
            ),
        )

    def _no_labels(self, task: str, examples: Examples) -> np.ndarray:
        return KINDS[self.kinds[task]].blank(len(examples), len(self.classes[task]))

    def check(self) -> tuple[checks.Finding, ...]:
        """Reads whatever may be wrong with the data, and says what looks wrong.

        Of the test split the labels are looked at, and no text but for whether it is one.

        Raises:
            UserError: Something is wrong with a split.
        """
        known = {task: self.classes[task] for each in self._data_sets for task in each.columns}
        train, validation = (self.read(split) for split in ("train", "validation"))
        views = {"validation": checks.View(validation.labels, validation.texts)}
        labels, notes = self._judged_test()
        if labels:
            views["test"] = checks.View(labels)
        found = checks.check(known, checks.View(train.labels, train.texts), views)
        return (*(checks.Finding("note", note) for note in notes), *found)

    def _judged_test(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """What is known of the labels of the test split without its texts, and of its files."""
        labels: dict[str, np.ndarray] = {}
        notes: list[str] = []
        for data_set in self._data_sets:
            if "test" in data_set.splits:
                of_tasks, of_file = data_set.judged("test")
                labels |= of_tasks
                notes += of_file
        limit = self._limits["test"]
        # Which of them a limit keeps depends on the texts.
        kept = limit is None or all(len(of_task) <= limit for of_task in labels.values())
        return (labels if kept else {}), notes

    def check_test(self, test: Examples) -> list[checks.Finding]:
        """What looks wrong with the test split, once that has been read."""
        known = {split: self.read(split).texts for split in ("train", "validation")}
        absent = [
            checks.absent_classes(task, self.classes[task], "test", test.labels[task])
            for each in self._data_sets
            for task in each.columns
            if self.kinds[task] != "regression"
        ]
        return [*itertools.chain(*absent), *checks.seen_before("test", test.texts, known)]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about the data, in words; reads train and validation, never test."""
        notes, several = [], len(self._data_sets) > 1
        for data_set in self._data_sets:
            where = f"{data_set.source.name}, " if several else ""
            notes += [where + note for note in data_set.notes()]
            if "test" in self.splits and "test" not in data_set.splits:
                notes.append(f"{where}test: there is none, so it says nothing of this data set")
        return (*notes, *self._kept("train")[1])


def load_corpus(config: DataConfig) -> Corpus:
    """Opens the data that the settings name.

    Where tasks have data sets of their own, a split holds the examples of all, each with labels
    for the tasks of its own; a test split that one of them lacks is that of the others.

    Args:
        config: Names files and TFDS data sets.

    Raises:
        UserError: The data cannot be found or fetched, or something is wrong with them.
    """
    kinds = config.kinds
    data_sets = tuple(_DataSet(source, columns, kinds) for source, columns in open_sources(config))
    classes = {task: names for each in data_sets for task, names in each.classes.items()}
    tests = any("test" in each.splits for each in data_sets)
    names = tuple(each.source.name for each in data_sets)
    return Corpus(
        name=" and ".join(names),
        classes={task: classes[task] for task in config.tasks},
        kinds=kinds,
        splits=("train", "validation", *(["test"] if tests else [])),
        fingerprint=_fingerprint(data_sets),
        sources=names,
        _data_sets=data_sets,
        _limits={
            "train": config.max_train_examples,
            "validation": config.max_evaluation_examples,
            "test": config.max_evaluation_examples,
        },
        _fractions=config.label_fractions,
    )


def _fingerprint(data_sets: Sequence[_DataSet]) -> str:
    if len(data_sets) == 1:
        return data_sets[0].source.fingerprint
    lines = [f"{' '.join(each.columns)}: {each.source.fingerprint}\n" for each in data_sets]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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


def _smallest(indices: np.ndarray, count: int, words: Callable[[int], str]) -> np.ndarray:
    """Those ``count`` of the indices whose words have the smallest SHA-256, in their order."""
    digests = {i: _digest(words(i)) for i in indices.tolist()}
    return np.sort(np.array(sorted(digests, key=digests.__getitem__)[:count], np.int64))


def _left_out(before: int, after: int, what: str) -> list[str]:
    if after == before:
        return []
    return [f"train: {before - after} of {before} texts have no {what} and are left out"]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest())
