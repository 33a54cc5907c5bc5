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
from mtl_jax.data.data_set import DataSet, Keeping
from mtl_jax.data.examples import Examples, index_type
from mtl_jax.data.findings import Finding
from mtl_jax.data.kinds import KINDS, blank, has_label
from mtl_jax.data.repeated_texts import seen_before
from mtl_jax.data.sources.registry import open_sources
from mtl_jax.data.table import EMPTY
from mtl_jax.data.texts import SomeTexts, choose, drawn, joined

if TYPE_CHECKING:
    from mtl_jax.config.tasks import Kind


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
    _data_sets: tuple[DataSet, ...] = dataclasses.field(repr=False)
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
            return np.arange(len(examples), dtype=index_type(len(examples)))
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
        return [*itertools.chain(*absent), *seen_before("test", test.text_hashes, known)]

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
    data_sets = tuple(DataSet(source, columns, kinds, keeping) for source, columns in opened)
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


def _left_out(before: int, after: int, what: str) -> list[str]:
    if after == before:
        return []
    return [f"train: {before - after} of {before} texts have no {what} and are left out"]
