"""One data set, read split by split into examples; a corpus has one or several."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from mtl_jax.core.errors import UserError
from mtl_jax.data.examples import Examples, index_type
from mtl_jax.data.indexed_copy import indexed_table
from mtl_jax.data.kinds import has_label
from mtl_jax.data.labels import as_array, soft_array
from mtl_jax.data.parsed_copy import parsed_table
from mtl_jax.data.soft_labels import agreement, is_soft, label_kinds, soft_name
from mtl_jax.data.table import EMPTY, Table, read_table
from mtl_jax.data.texts import KeepAll, KeepChosen, Keeper, KeepNone, KeepSample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mtl_jax.config.tasks import Kind
    from mtl_jax.data.sources.base import Source

_LARGEST_CHOICE = 100_000


@dataclasses.dataclass(frozen=True)
class Keeping:
    """How the texts of a split are kept.

    Up to ``in_memory`` they are held. Of more a limit keeps those that it chooses, one that
    looks at the data a sample, and everyone else has them in an ``indexed_table``.
    """

    in_memory: int = 64 * 2**20
    """bytes; as Python objects a short text takes two or three times as much"""
    sample: int | None = None
    """texts of a split; None where all are needed"""
    limits: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    """per split; a larger one than ``_LARGEST_CHOICE`` chooses from the indexed copy"""
    subset: int | None = None
    """as of ``DataConfig.train_subset``"""

    def keeper(self, split: str, size: int) -> Callable[[], Keeper] | None:
        """What keeps the texts of a split of about so many bytes; None for the indexed copy."""
        limit = self.limits.get(split)
        if size <= self.in_memory:
            return KeepAll
        if limit is not None:
            train = split == "train"
            subset = self.subset if train else None
            chosen = functools.partial(KeepChosen, limit, labelled_only=train, subset=subset)
            return chosen if limit <= _LARGEST_CHOICE else None
        return None if self.sample is None else functools.partial(KeepSample, self.sample)


class DataSet:
    """One data set with the classes of the tasks that it serves.

    Without a validation split, a tenth of the training examples is set aside as one, by
    the SHA-256 of the text, so that identical texts land on the same side, those of another
    data set included.

    Args:
        source: Where its texts and labels are read from.
        columns: The column of each task's labels, and by ``soft_name`` that of its distributions.
        kinds: The kinds of the tasks.
        keeping: How texts are kept.

    Attributes:
        source: Likewise.
        columns: The column of each task's labels.
        kinds: How the labels of each task are read.
        classes: Per task the names of its classes.
        splits: Those there are, of train, validation and test.
        carved: Whether validation is a part of the training examples.
    """

    def __init__(
        self,
        source: Source,
        columns: dict[str, str],
        kinds: Mapping[str, Kind],
        keeping: Keeping,
    ):
        self.source, self._read_as = source, label_kinds(columns, kinds)
        self._soft = {
            task: columns[name] for task in columns if (name := soft_name(task)) in columns
        }
        self.columns = {task: column for task, column in columns.items() if not is_soft(task)}
        self.kinds = {task: self._read_as[task] for task in self.columns}
        self.carved = "validation" not in source.splits
        self.splits = ("train", "validation", *(s for s in source.splits if s == "test"))
        self._keeping = keeping
        self._tables: dict[str, Table] = {}
        self._examples: dict[str, Examples] = {}
        self._notes: dict[str, tuple[str, ...]] = {}
        self._odd: dict[str, int] = {}
        self._halved: dict[str, int] = {}
        self.classes = {
            task: source.classes[task] if task in source.classes else self._classes_of(task)
            for task in self.columns
        }

    def _classes_of(self, task: str) -> tuple[str, ...]:
        """The classes that the training labels of a task name."""
        # Of one column with distributions a class may be the most probable of no text.
        name = soft_name(task) if self._soft.get(task) == self.columns[task] else task
        return self._read_as[name].classes(self._table("train").labels[name])

    def read(self, split: str) -> Examples:
        """The examples of a split, read once."""
        if split not in self._examples:
            carved = self.carved and split != "test"
            self._part("train" if carved else split, carved=carved)
        return self._examples[split]

    def _table(self, split: str) -> Table:
        if split not in self._tables:
            carved = self.carved and split == "train"
            sizes = {split: self.source.size(split)}
            if carved:
                sizes["validation"] = sizes[split] // 10
            keepers = [self._keeping.keeper(part, size) for part, size in sizes.items()]
            kinds = self._read_as if split == "train" else self.kinds
            if None in keepers:
                table = indexed_table(self.source, split, kinds, set_aside=carved)
            else:
                makers = [keeper for keeper in keepers if keeper is not None]
                read = functools.partial(
                    read_table,
                    lambda: self.source.stream(split),
                    kinds,
                    lambda: (makers[0](), makers[-1]()),
                    set_aside=carved,
                )
                if all(maker is KeepAll for maker in makers):
                    table = parsed_table(self.source, split, kinds, read, set_aside=carved)
                else:
                    table = read()
            self._tables[split], self._notes[split] = table, table.notes
        return self._tables[split]

    def _part(self, split: str, *, carved: bool) -> None:
        """Makes the examples of a table of the source, and lets go of the table."""
        table = self._table(split)
        labels = self._arrays(table, split)
        soft = {
            task: soft_array(table, task, column, self.classes[task])
            for task, column in self._soft.items()
            if split == "train"
        }
        if carved and not 0 < table.aside.sum() < len(table):
            raise UserError(
                f"{self.source.name} holds one distinct text, of which no validation split can "
                "be set aside: add examples or name a --validation-file"
            )
        # As many numbers again, which nobody needs any more.
        table.labels.clear()
        del self._tables[split]
        arrays: dict[str, np.ndarray] = {"hashes": table.hashes}
        arrays["rows"] = np.arange(len(table), dtype=index_type(len(table)))
        if table.groups is not None:
            arrays["groups"] = np.asarray(table.groups.names[1:], np.str_)[table.groups.codes - 1]
        if not carved:
            self._examples[split] = Examples(table.texts[0], labels, soft=soft, **arrays)
            self._odd[split], self._halved[split] = len(table.odd), len(table.halved)
            return
        parts = {"train": ~table.aside, "validation": table.aside}
        for part, there in parts.items():
            self._odd[part] = int(there[table.odd].sum())
            self._halved[part] = int(there[table.halved].sum())
        texts = table.texts
        del table
        masks = list(parts.values())
        kinds = [_parted(each, masks) for each in (labels, soft, arrays)]
        for part, own, *of_part in zip(parts, texts, *kinds, strict=True):
            own_labels, own_soft, others = of_part
            self._examples[part] = Examples(own, own_labels, soft=own_soft, **others)

    def _arrays(self, table: Table, split: str) -> dict[str, np.ndarray]:
        return {
            task: as_array(table, task, self.kinds[task], column, self.classes[task], split)
            for task, column in self.columns.items()
        }

    def judged(self, split: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Per task the labels of a split, and what to know of how it was read.

        Texts are kept where ``read`` would hold them in memory, so that a split is read once.
        Nothing is read where the source declares all classes: no label can be another then.

        Raises:
            UserError: The split can't be read, or has a label that training has not.
        """
        if self.columns.keys() <= self.source.classes.keys():
            return {}, ()
        if self._keeping.keeper(split, self.source.size(split)) is KeepAll:
            table = self._table(split)
        else:
            table = read_table(
                lambda: self.source.stream(split), self.kinds, lambda: (KeepNone(), KeepNone())
            )
        return self._arrays(table, split), table.notes

    def notes(self) -> list[str]:
        """What to know about it, in words; reads train and validation, never test."""
        parts = {split: self.read(split) for split in ("train", "validation")}
        notes = [*self.source.notes, *self._notes["train"], *self._notes.get("validation", ())]
        if self.carved:
            notes.append("validation: a tenth of the training texts, set aside by hash")
        columns = list(self.columns.values())
        notes += [
            f"warning: {' and '.join(task for task, own in self.columns.items() if own == column)} "
            f"have the same label column, {column}"
            for column in dict.fromkeys(columns)
            if columns.count(column) > 1
        ]
        train = parts["train"]
        for task, soft in train.soft.items():
            there, alike = agreement(train.labels[task], soft)
            notes.append(
                f"train: {there} of {len(train)} texts have a distribution over the classes of "
                f"{task}; of {alike} its most probable class is the label"
            )
        for split, examples in parts.items():
            if odd := self._odd[split]:
                notes.append(
                    f"warning: {split}: {odd} of {len(examples)} texts have NUL characters, which "
                    "the tokenizer may drop"
                )
            if empty := int(np.sum(examples.text_hashes == EMPTY)):
                notes.append(f"{split}: {empty} of {len(examples)} texts are empty")
            if halved := self._halved[split]:
                notes.append(
                    f"warning: {split}: {halved} of {len(examples)} pairs lack one of their texts"
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


def _parted(
    arrays: dict[str, np.ndarray], masks: Sequence[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """What each mask, bool [n], picks of arrays of n rows.

    The arrays are taken out one after the other, so that of many rows no second copy of all of
    them is in memory.
    """
    parts: list[dict[str, np.ndarray]] = [{} for _ in masks]
    for name in list(arrays):
        whole = arrays.pop(name)
        for part, mask in zip(parts, masks, strict=True):
            part[name] = whole[mask]
    return parts
