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
from mtl_jax.data.findings import Finding
from mtl_jax.data.indexed_copy import indexed_table
from mtl_jax.data.kinds import KINDS, blank, has_label
from mtl_jax.data.labels import as_array, soft_array
from mtl_jax.data.parsed_copy import parsed_table
from mtl_jax.data.soft_labels import agreement, is_soft, label_kinds, soft_name
from mtl_jax.data.sources.registry import open_sources
from mtl_jax.data.table import EMPTY, Table, hashes_of, read_table
from mtl_jax.data.texts import (
    KeepAll,
    KeepChosen,
    Keeper,
    KeepNone,
    KeepSample,
    SomeTexts,
    choose,
    drawn,
    joined,
    take,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mtl_jax.config.tasks import Kind
    from mtl_jax.data.sources.base import Source

_LARGEST_CHOICE = 100_000


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of one split."""

    texts: Sequence[str]
    """n texts, a ``Pair`` where an example has two; of many only some may be known, or each is
    read when it is asked for"""
    labels: dict[str, np.ndarray]
    """per task one label to a text, as ``kinds`` tells: int32 [n], indices into its classes,
    MISSING where there is no label; int8 [n, classes]; or float64 [n]"""
    groups: np.ndarray | None
    """str [n]: where each example comes from, for metrics by source; None if unknown"""
    sources: np.ndarray | None = None
    """int32 [n]: which of the corpus's data sets each example is of; None where there is one"""
    hashes: np.ndarray | None = None
    """uint64 [n]: ``hashes_of`` the texts, where they have been worked out"""
    rows: np.ndarray | None = None
    """integers [n]: which row of its data set's split each example is, as they were read; of a
    validation split that was set aside, of the training split. None if unknown"""
    soft: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """of texts to train on per task that has some float32 [n, classes]: a distribution over its
    classes; all 0 where a text has none"""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """Picks examples.

        Args:
            indices: Integers [m]; the result has them in this order.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        return Examples(
            texts=take(self.texts, chosen),
            labels={task: labels[chosen] for task, labels in self.labels.items()},
            groups=None if self.groups is None else self.groups[chosen],
            sources=None if self.sources is None else self.sources[chosen],
            hashes=None if self.hashes is None else self.hashes[chosen],
            rows=None if self.rows is None else self.rows[chosen],
            soft={task: shares[chosen] for task, shares in self.soft.items()},
        )

    def sample(self, most: int | None = None) -> Examples:
        """Those whose texts are known, and of more than ``most`` as many, evenly spaced."""
        texts = self.texts
        known = texts.known if isinstance(texts, SomeTexts) else np.arange(len(texts))
        if most is not None and len(known) > most:
            known = known[np.linspace(0, len(known) - 1, most).round().astype(np.int64)]
        return self if len(known) == len(self) else self.take(known)

    @property
    def text_hashes(self) -> np.ndarray:
        """uint64 [n]: ``hashes_of`` the texts."""
        return hashes_of(self.texts) if self.hashes is None else self.hashes

    def labelled(self, tasks: Sequence[str] | None = None) -> np.ndarray:
        """Bool [n]: which examples have a label for at least one of ``tasks`` (all)."""
        tasks = tuple(self.labels) if tasks is None else tasks
        return np.any([has_label(self.labels[task]) for task in tasks], axis=0)


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


class _DataSet:
    """One data set with the classes of the tasks that it serves.

    Without a validation split, a tenth of the training examples is set aside as one, by
    the SHA-256 of the text, so that identical texts land on the same side, those of another
    data set included.
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
        arrays["rows"] = np.arange(len(table), dtype=_index_type(len(table)))
        if table.groups is not None:
            arrays["groups"] = np.asarray(table.groups.names[1:], np.str_)[table.groups.codes - 1]
        if not carved:
            self._examples[split] = _examples(table.texts[0], labels, soft, arrays)
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
        for part, of_texts, *of_part in zip(parts, texts, *kinds, strict=True):
            self._examples[part] = _examples(of_texts, *of_part)

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
    sources: tuple[str, ...]
    """the names of the data sets, in the order of their numbers"""
    _data_sets: tuple[_DataSet, ...] = dataclasses.field(repr=False)
    _limits: dict[str, int | None] = dataclasses.field(repr=False)
    _fractions: dict[str, float] = dataclasses.field(repr=False)
    _subset: int | None = dataclasses.field(default=None, repr=False)
    _drops_duplicates: bool = dataclasses.field(default=False, repr=False)
    _read: dict[str, tuple[Examples, list[str], np.ndarray | None]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the data as a whole, whatever part of them the settings use.

        It is taken when it is first asked for: do so before rows are read that it stands for.
        """
        if len(self._data_sets) == 1:
            return self._data_sets[0].source.fingerprint()
        lines = [
            f"{' '.join(each.columns)}: {each.source.fingerprint()}\n" for each in self._data_sets
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def read(self, split: str) -> Examples:
        """Reads a split, or what the settings keep of it.

        A limit keeps the examples with the smallest SHA-256 of position and text, in
        their order in the source: the same ones whatever the seed. Of the training split
        only examples with a label are kept; of a task whose labels are thinned, those with
        the smallest SHA-256 of position, task and text: those of a smaller part are among
        those of a larger one. Where a subset is named, it stands in the place of the text.

        Raises:
            UserError: There is no such split, or something is wrong with its contents.
        """
        return self._kept(split)[0]

    def places(self, split: str) -> np.ndarray:
        """Integers [n]: which of all examples of a split the kept ones are, ascending."""
        examples, _, places = self._kept(split)
        if places is None:
            return np.arange(len(examples), dtype=_index_type(len(examples)))
        return places

    def limited(self, config: DataConfig) -> Corpus:
        """The same data with the limits of other settings; no file is read again.

        Args:
            config: Differs from the settings of this corpus, which has no limit of the training
                texts, in these limits alone.
        """
        return dataclasses.replace(
            self,
            _limits=_limits(config),
            _fractions=config.label_fractions,
            _subset=config.train_subset,
            _read={split: kept for split, kept in self._read.items() if split != "train"},
        )

    def _kept(self, split: str) -> tuple[Examples, list[str], np.ndarray | None]:
        """What is kept of a split, in words what is not, and where the former is in the whole.

        That is None where all is kept.
        """
        if split not in self.splits:
            raise UserError(
                f"{self.name} has no {split} split: use one of {', '.join(self.splits)}"
            )
        if split in self._read:
            return self._read[split]
        self._read[split] = self._chosen(split)
        return self._read[split]

    def _chosen(self, split: str) -> tuple[Examples, list[str], np.ndarray | None]:
        examples = self._whole(split)
        training, limit, texts = split == "train", self._limits[split], examples.texts
        there = examples.labelled() if training else np.ones(len(examples), bool)
        unlimited = limit is None or limit >= len(examples)
        some_go = training and (self._fractions or self._drops_duplicates)
        if unlimited and there.all() and not some_go:
            return examples, [], None
        kept = np.flatnonzero(there)
        notes = _left_out(len(examples), len(kept), "label")
        if training and self._drops_duplicates:
            twice = self._duplicated(examples.text_hashes[kept])
            notes.append(
                f"train: {twice.sum()} of {len(kept)} texts are in validation or test, too, and "
                "are left out (--drop-duplicates)"
            )
            kept = kept[~twice]
        subset = self._subset if training else None
        if limit is not None and limit < len(kept):
            if isinstance(texts, SomeTexts):
                kept = texts.known
            elif subset is None:
                kept = choose(texts, kept, limit, lambda i: f"{i}\n")
            else:
                kept = drawn(kept, limit, subset)
        if not training or not self._fractions:
            whole = len(kept) == len(examples)
            return (examples if whole else examples.take(kept)), notes, kept
        labels = dict(examples.labels)
        for task, fraction in self._fractions.items():
            of_task = kept[has_label(labels[task][kept])]
            count = min(max(round(fraction * len(of_task)), 1), len(of_task))
            if subset is None:
                chosen = choose(texts, of_task, count, lambda i, task=task: f"{i}\n{task}\n")
            else:
                chosen = drawn(of_task, count, subset, task)
            thinned = blank(labels[task], (len(examples),))
            thinned[chosen] = labels[task][chosen]
            labels[task] = thinned
            notes.append(
                f"train: {count} of {len(of_task)} {task} labels remain (--label-fraction)"
            )
        thinned = dataclasses.replace(examples, labels=labels).take(kept)
        still = np.flatnonzero(thinned.labelled())
        notes += _left_out(len(kept), len(still), "label that remains")
        return thinned.take(still), notes, kept[still]

    def _duplicated(self, hashes: np.ndarray) -> np.ndarray:
        """Bool [n]: which of these texts are in all of validation or test, too; not empty ones."""
        others = [self._whole(split).text_hashes for split in self.splits if split != "train"]
        return np.isin(hashes, np.concatenate(others)) & (hashes != EMPTY)

    def _whole(self, split: str) -> Examples:
        """The examples of all data sets, one after the other."""
        if len(self._data_sets) == 1:
            return self._data_sets[0].read(split)
        parts = [(i, d, d.read(split)) for i, d in enumerate(self._data_sets) if split in d.splits]
        return Examples(
            texts=joined([part.texts for _, _, part in parts]),
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
            hashes=np.concatenate([p.text_hashes for _, _, p in parts]),
            rows=np.concatenate(
                [np.arange(len(p)) if p.rows is None else p.rows for _, _, p in parts]
            ),
            soft={
                task: np.concatenate(
                    [
                        part.soft.get(task, np.zeros((len(part), shares.shape[1]), np.float32))
                        for _, _, part in parts
                    ]
                )
                for _, _, own in parts
                for task, shares in own.soft.items()
            },
        )

    def _no_labels(self, task: str, examples: Examples) -> np.ndarray:
        return KINDS[self.kinds[task]].blank(len(examples), len(self.classes[task]))

    def check(self) -> tuple[Finding, ...]:
        """Reads whatever may be wrong with the data, and says what looks wrong.

        Of the test split the labels are looked at, and no text but for whether it is one.

        Raises:
            UserError: Something is wrong with a split.
        """
        known = {task: self.classes[task] for each in self._data_sets for task in each.columns}
        train, validation = (self.read(split) for split in ("train", "validation"))
        views = {"validation": checks.View(validation.labels, validation.text_hashes)}
        labels, notes = self._judged_test()
        if labels:
            views["test"] = checks.View(labels)
        found = checks.check(known, checks.View(train.labels, train.text_hashes), views)
        return (*(Finding("note", note) for note in notes), *found)

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

    def test_counts(self) -> dict[str, list[int]]:
        """About how many test texts have each class, by task; of a task without classes nothing.

        No test text is read. Where a limit leaves out some, the shares of the classes are taken for
        those of the validation split, and without a test split the counts are that split's.
        """
        labels = self._judged_test()[0] if "test" in self.splits else {}
        limit = self._limits["test"] if "test" in self.splits else None
        known = {
            task: checks.class_counts(of_task, len(self.classes[task]))
            for task, of_task in labels.items()
        }
        if not known:
            validation = self.read("validation")
            scale = 1.0 if limit is None else limit / max(len(validation), 1)
            known = {
                task: np.round(scale * checks.class_counts(of_task, len(self.classes[task])))
                for task, of_task in validation.labels.items()
            }
        return {task: [int(n) for n in counts] for task, counts in known.items() if len(counts)}

    def check_test(self, test: Examples) -> list[Finding]:
        """What looks wrong with the test split, once that has been read."""
        known = {split: self.read(split).text_hashes for split in ("train", "validation")}
        absent = [
            checks.absent_classes(task, self.classes[task], "test", test.labels[task])
            for each in self._data_sets
            for task, kind in each.kinds.items()
            if kind.has_classes
        ]
        return [*itertools.chain(*absent), *checks.seen_before("test", test.text_hashes, known)]

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


def load_corpus(config: DataConfig, keeping: Keeping | None = None) -> Corpus:
    """Opens the data that the settings name.

    Where tasks have data sets of their own, a split holds the examples of all, each with labels
    for the tasks of its own; a test split that one of them lacks is that of the others.

    Args:
        config: Names files and TFDS data sets.
        keeping: How texts are kept; by default as those of a run, all of which are needed.

    Raises:
        UserError: The data cannot be found or fetched, or something is wrong with them.
    """
    limits = _limits(config)
    keeping = keeping or Keeping()
    opened = open_sources(config)
    if len(opened) == 1:
        # Which texts of several data sets a limit chooses is known when all of them are, and
        # which training texts stand elsewhere when the other splits are.
        first = {"train": None} if config.drop_duplicates else {}
        keeping = dataclasses.replace(keeping, limits=limits | first, subset=config.train_subset)
    if len(opened) > 1 or config.label_fractions:
        keeping = dataclasses.replace(keeping, sample=None)
    kinds = config.kinds
    data_sets = tuple(_DataSet(source, columns, kinds, keeping) for source, columns in opened)
    classes = {task: names for each in data_sets for task, names in each.classes.items()}
    tests = any("test" in each.splits for each in data_sets)
    names = tuple(each.source.name for each in data_sets)
    return Corpus(
        name=" and ".join(names),
        classes={task: classes[task] for task in config.tasks},
        kinds=config.kinds,
        splits=("train", "validation", *(["test"] if tests else [])),
        sources=names,
        _data_sets=data_sets,
        _limits=limits,
        _fractions=config.label_fractions,
        _subset=config.train_subset,
        _drops_duplicates=config.drop_duplicates,
    )


def _limits(config: DataConfig) -> dict[str, int | None]:
    """How many examples of each split are kept at most."""
    return {
        "train": config.max_train_examples,
        "validation": config.max_validation_examples,
        "test": config.max_test_examples,
    }


def _examples(
    texts: Sequence[str],
    labels: dict[str, np.ndarray],
    soft: dict[str, np.ndarray],
    others: Mapping[str, np.ndarray],
) -> Examples:
    """Those with these texts, labels, distributions, and other arrays by attribute."""
    groups, hashes, rows = others.get("groups"), others["hashes"], others["rows"]
    return Examples(texts, labels, groups, hashes=hashes, rows=rows, soft=soft)


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


def _index_type(rows: int) -> type[np.signedinteger]:
    return np.int32 if rows < 2**31 else np.int64


def _left_out(before: int, after: int, what: str) -> list[str]:
    if after == before:
        return []
    return [f"train: {before - after} of {before} texts have no {what} and are left out"]
