"""Which texts and labels a run reads, as a frozen dataclass. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mtl_jax.config.extensions import as_pairs
from mtl_jax.config.tasks import Kind, numbers_of, pairs_of, refuse_kind
from mtl_jax.core.converted import ByTask, Converted, PathText, default
from mtl_jax.core.errors import UserError
from mtl_jax.core.paths import expanded
from mtl_jax.core.type_checks import refuse_types

LongTexts = Literal["cut", "refuse"]
Mixing = Literal["size", "temperature", "equal"]
PerTask = str | tuple[str, ...]
"""One value for all tasks, or ``task=value`` for each."""
GivenPerTask = PathText | Sequence[str] | Mapping[str, PathText]
"""What becomes one, with paths or a mapping by task."""


_FILES = ("train_file", "validation_file", "test_file")
_OF_TASKS = ("label_columns", "soft_labels", "label_fraction", "task_kinds")
_LIMITS = ("max_train_examples", "max_validation_examples", "max_test_examples")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the texts of a task come from; equal ones are read once."""

    files: tuple[tuple[str, Path], ...]
    """``(split, file)``; none where the texts come from ``dataset``"""
    dataset: str
    """`sentences`, or the name of a TFDS data set; empty where there are files"""
    text_column: str
    """the column or feature that holds the text"""
    pair_column: str | None = None
    """the one that holds the second text, where each example is a pair"""

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns of the text, or of the two of a pair."""
        return (self.text_column, *([] if self.pair_column is None else [self.pair_column]))

    @property
    def name(self) -> str:
        """The training file, or the data set."""
        return str(self.files[0][1]) if self.files else self.dataset


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which texts and labels a run reads.

        data = mtl.DataConfig(train_file="train.csv", label_columns=("topic=topic", "stars=rating"),
                              task_kinds=("stars=regression",))

    Its fields are the flags of the data of ``train --help``, which describes each.
    """

    dataset: Converted[GivenPerTask, PerTask] = default("sentences")
    """data set to use instead of files: the default corpus `sentences`, the name of a TFDS data \
set, or hub:NAME or hub:NAME:CONFIGURATION for the Hugging Face hub (needs the package datasets); \
task=name pairs if the tasks have different data sets"""
    train_file: Converted[GivenPerTask | None, PerTask | None] = default(None)
    """CSV, TSV, JSON Lines or Parquet file to train on, instead of --dataset; task=file pairs if \
the tasks have different files"""
    validation_file: Converted[GivenPerTask | None, PerTask | None] = default(None)
    """validation file; without one, a tenth of the training texts is set aside by hash"""
    test_file: Converted[GivenPerTask | None, PerTask | None] = default(None)
    """test file; without one, there are no test metrics"""
    text_column: Converted[GivenPerTask, PerTask] = default("text")
    """column or feature with the texts; task=column pairs if the tasks differ"""
    text_columns: Converted[Sequence[str] | Mapping[str, Sequence[str]], tuple[str, ...]] = default(
        ()
    )
    """for pairs of texts, instead of --text-column: the two columns, such as premise hypothesis; \
task=column pairs, two per task, if the tasks differ"""
    label_columns: Converted[ByTask, tuple[str, ...]] = default(
        ("classifier=classifier", "sentiment=sentiment")
    )
    """task=column pairs: the tasks, with names of your choice, and the columns of their labels. \
An empty label is missing, and so is -1 unless the task is a regression"""
    task_kinds: Converted[ByTask, tuple[str, ...]] = default(())
    """task=kind pairs: single_label (the default); multi_label, lists of classes, as JSON or \
separated by |; or regression, numbers"""
    soft_labels: Converted[ByTask, tuple[str, ...]] = default(())
    """task=column pairs: train on distributions over the classes of a single_label task: JSON \
objects of shares by class, or lists in the order of the classes. Metrics compare with the task's \
own label, which is the most probable class if both are the same column"""
    label_fraction: Converted[ByTask, tuple[str, ...]] = default(())
    """task=fraction pairs: train on this fraction of a task's labels only"""
    mixing: Mixing = "size"
    """share of each of several data sets in an epoch: proportional to its size, to its size ^ (1 \
/ temperature), or equal"""
    mixing_temperature: float = 2.0
    """with --mixing temperature: 1 means by size, and higher values are closer to equal shares"""
    mixing_cap: int | None = None
    """maximum number of texts that a data set counts for in --mixing"""
    max_length: int = 128
    """maximum number of tokens per text, including special tokens"""
    long_texts: LongTexts = "cut"
    """what to do with longer texts: truncate and count them, or refuse them"""
    max_train_examples: int | None = None
    """maximum number of training examples"""
    train_subset: int | None = None
    """number of the random subset that --max-train-examples and --label-fraction select: 0, 1, \
...; by default the subset is selected by hash. A study uses another subset for each seed"""
    drop_duplicates: bool = False
    """leave out training texts that also occur in validation or test; they are counted in any \
case"""
    max_validation_examples: int | None = None
    """maximum number of validation examples"""
    max_test_examples: int | None = None
    """maximum number of test examples"""

    def __post_init__(self) -> None:
        refuse_types(self, DataConfig)
        # A record has lists for tuples.
        for name in _OF_TASKS:
            object.__setattr__(self, name, as_pairs(getattr(self, name)))
            refuse_blank(name, getattr(self, name), paired=True)
        for name in ("dataset", "text_column", *_FILES):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            elif isinstance(value, Mapping):
                value = as_pairs(value)
            refuse_blank(name, (value,) if isinstance(value, str) else value or (), self.columns)
            object.__setattr__(self, name, _normal(value, self.columns))
        columns: Any = self.text_columns
        if isinstance(columns, Mapping):
            columns = [f"{task}={each}" for task, pair in columns.items() for each in pair]
        object.__setattr__(self, "text_columns", tuple(columns))
        refuse_blank("text_columns", self.text_columns, self.columns)
        for name in (*_LIMITS, "mixing_cap"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise UserError(f"{_flag(name)} {limit} must be at least 1")
        if self.train_subset is not None and self.train_subset < 0:
            raise UserError(f"--train-subset {self.train_subset} must not be negative")
        if not self.mixing_temperature >= 1:
            raise UserError(f"--mixing-temperature {self.mixing_temperature} must be at least 1")
        origins = self.origins
        for name in ("mixing", "mixing_cap"):
            value = getattr(self, name)
            if value != _DEFAULTS[name] and len(origins) < 2:
                raise UserError(
                    f"{_flag(name)} {value} needs several data sets, and there is one: "
                    "name one for each task with --train-file or --dataset, or leave "
                    f"{_flag(name)} out"
                )
        temperature = self.mixing_temperature
        if temperature != _DEFAULTS["mixing_temperature"] and self.mixing != "temperature":
            raise UserError(
                f"--mixing-temperature {temperature} needs --mixing temperature, and it is "
                f"{self.mixing}: add that, or leave --mixing-temperature out"
            )
        _ = self.label_fractions, self.kinds, self.soft_columns

    def absolute(self) -> DataConfig:
        """The same, with file names that hold from any folder."""
        return dataclasses.replace(self, **{n: _absolute(getattr(self, n)) for n in _FILES})

    def whole(self) -> DataConfig:
        """The same with all training texts and all their labels."""
        return dataclasses.replace(
            self, max_train_examples=None, train_subset=None, label_fraction=()
        )

    def of_task(self, task: str) -> DataConfig:
        """The same with that task alone: its labels, and its own data set."""
        changes: dict[str, Any] = {
            name: tuple(pair for pair in getattr(self, name) if pair.startswith(f"{task}="))
            for name in _OF_TASKS
        }
        if any(pair.partition("=")[0] in self.columns for pair in self.text_columns):
            own = tuple(pair for pair in self.text_columns if pair.startswith(f"{task}="))
            changes["text_columns"] = own
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("dataset", "text_column", *_FILES) and isinstance(value, tuple):
                own = tuple(each for each in value if each.startswith(f"{task}="))
                changes[field.name] = own or field.default
        # There is one data set left at most: nothing to mix.
        changes |= {name: value for name, value in _DEFAULTS.items() if name.startswith("mixing")}
        return dataclasses.replace(self, **changes)

    @property
    def columns(self) -> dict[str, str]:
        """The label column of each task, in the order given.

        Raises:
            UserError: ``label_columns`` names none, or what can't be the name of a task.
        """
        columns = pairs_of("--label-columns", self.label_columns, "column")
        if not columns:
            raise UserError("--label-columns is empty: name each task and its column, task=column")
        return columns

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order given."""
        return tuple(self.columns)

    @property
    def label_fractions(self) -> dict[str, float]:
        """The part of its training labels that each task of ``label_fraction`` keeps, (0, 1].

        Raises:
            UserError: One is no such number, or of something that is no task with a column.
        """
        flag, columns = "--label-fraction", self.columns
        fractions = numbers_of(flag, self.label_fraction, "fraction", self.tasks)
        for task, fraction in fractions.items():
            if not 0 < fraction <= 1:
                given = pairs_of(flag, self.label_fraction, "fraction")[task]
                raise UserError(f"{flag} {task}={given} must be a number above 0 and at most 1")
        return {task: fractions[task] for task in columns if task in fractions}

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each task, in the order of the tasks.

        Raises:
            UserError: ``task_kinds`` names one that there is not, or something that is no task.
        """
        given = pairs_of("--task-kinds", self.task_kinds, "kind", self.tasks)
        for task, kind in given.items():
            refuse_kind(kind, f"--task-kinds {task}")
        return {task: refuse_kind(given.get(task, "single_label"), task) for task in self.tasks}

    @property
    def soft_columns(self) -> dict[str, str]:
        """The column of the distributions of each task that is trained on some.

        Raises:
            UserError: ``soft_labels`` names something that is no task of one label.
        """
        found = pairs_of("--soft-labels", self.soft_labels, "column", self.tasks)
        for task in found:
            if (kind := self.kinds[task]) != "single_label":
                raise UserError(
                    f"--soft-labels names {task}, which is {kind}: a distribution is over the "
                    "classes of a single_label task: leave it out"
                )
        return found

    @property
    def pair_columns(self) -> dict[str, tuple[str, str]]:
        """The two text columns of each task whose examples are pairs.

        Raises:
            UserError: ``text_columns`` does not name two, or ``text_column`` names one as well.
        """
        flag, named = "--text-columns", self.text_columns
        of_tasks: dict[str, list[str]] = {}
        for value in named:
            task, equals, column = value.partition("=")
            if equals and task in self.columns:
                of_tasks.setdefault(task, []).append(column)
        if of_tasks and sum(map(len, of_tasks.values())) < len(named):
            raise UserError(
                f"{flag} {' '.join(named)}: some are for all tasks and some for one: name two "
                "columns, or write task=column, two for each of the tasks"
            )
        if named and not of_tasks:
            of_tasks = {task: list(named) for task in self.tasks}
        for task, columns in of_tasks.items():
            if len(columns) != 2 or columns[0] == columns[1]:
                raise UserError(
                    f"{flag} {' '.join(named)}: a pair of texts has two columns, and "
                    f"{len(set(columns))} {'is' if len(set(columns)) == 1 else 'are'} named"
                    f"{f' for {task}' if named and '=' in named[0] else ''}: name two, or one "
                    "with --text-column"
                )
        single = self.text_column
        for task in of_tasks:
            everywhere = isinstance(single, str) and of_tasks.keys() == self.columns.keys()
            if (everywhere and single != _DEFAULTS["text_column"]) or (
                isinstance(single, tuple) and any(each.startswith(f"{task}=") for each in single)
            ):
                raise UserError(
                    f"--text-column and {flag} both say where the texts of {task} are: leave one "
                    "of them out"
                )
        return {task: (first, second) for task, (first, second) in of_tasks.items()}

    @property
    def origins(self) -> dict[Origin, dict[str, str]]:
        """The data sets that there are to read, each with the label columns of its tasks.

        Raises:
            UserError: A task's data set is missing, or named in a way that has no meaning.
        """
        columns, pairs = self.columns, self.pair_columns
        named = {name: self._of_tasks(name) for name in ("dataset", "text_column", *_FILES)}
        named["text_column"] |= {task: first for task, (first, _) in pairs.items()}
        trained = named["train_file"]
        if isinstance(self.dataset, tuple):
            for task in named["dataset"].keys() & trained.keys():
                raise UserError(
                    f"--dataset and --train-file both name one of {task}: leave one of them out"
                )
        for name in _FILES[1:]:
            for task in named[name].keys() - trained.keys():
                raise UserError(
                    f"{_flag(name)} needs --train-file: name that one too"
                    + (f" for {task}, or write task=file" if trained else "")
                )
        origins: dict[Origin, dict[str, str]] = {}
        for task, column in columns.items():
            files = {n.split("_")[0]: named[n][task] for n in _FILES if task in named[n]}
            for name in ("text_column", *(() if files else ("dataset",))):
                if task not in named[name]:
                    raise UserError(
                        f"{_flag(name)} names none for {task}: add {task}=..., or leave {task} "
                        "out of --label-columns"
                    )
            origin = Origin(
                tuple((split, expanded(file)) for split, file in files.items()),
                "" if files else named["dataset"][task],
                named["text_column"][task],
                pairs[task][1] if task in pairs else None,
            )
            origins.setdefault(origin, {})[task] = column
        trained_on = {(*o.files[:1], o.dataset, o.text_column, o.pair_column) for o in origins}
        if len(trained_on) < len(origins):
            raise UserError(
                "several tasks are trained on the same file, but validated or tested on others: "
                "name one --validation-file and one --test-file for all of them"
            )
        return origins

    def _of_tasks(self, name: str) -> dict[str, str]:
        """{task: value} of a ``PerTask`` field, for the tasks with a column."""
        value, flag = getattr(self, name), _flag(name)
        if value is None:
            return {}
        if isinstance(value, str):
            return dict.fromkeys(self.columns, value)
        if loose := [each for each in value if "=" not in each]:
            raise UserError(
                f"{flag} {' '.join(value)}: {loose[0]!r} is for all tasks: name it alone, or "
                "write task=... for each"
            )
        return pairs_of(flag, value, "value", self.tasks)


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(DataConfig)}


def refuse_blank(
    name: str, values: Iterable[str], tasks: Container[str] = (), *, paired: bool = False
) -> None:
    """Refuses a value of a flag that names nothing, alone or after ``task=``.

    Args:
        name: The flag, as a field is called.
        values: Its values.
        tasks: The tasks that there are.
        paired: Whether every value is a pair, whatever the tasks are.

    Raises:
        UserError: One is empty or white space.
    """
    for value in values:
        task, equals, named = value.partition("=")
        bare = equals and (paired or task in tasks) and not named.strip()
        if bare or not value.strip():
            raise UserError(
                f"{_flag(name)} {value!r} names nothing: is a variable of the shell unset? "
                "Give it a value, or leave the flag out"
            )


def _normal(value: PerTask | None, tasks: Container[str]) -> PerTask | None:
    """One value for all tasks as a string, others as a tuple; nothing as None."""
    values = (value,) if isinstance(value, str) else tuple(value or ())
    if len(values) == 1 and values[0].partition("=")[0] not in tasks:
        return values[0]
    return values or None


def _absolute(value: PerTask | None) -> PerTask | None:
    if isinstance(value, str):
        return absolute_path(value)
    if value is None:
        return None
    named = [each.partition("=") for each in value]
    return tuple(f"{task}={absolute_path(file)}" for task, _, file in named)


def absolute_path(path: str) -> str:
    """A path that holds from any folder."""
    return str(expanded(path).absolute())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
