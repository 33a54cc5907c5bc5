"""A study of many runs, as data: its settings, its arms, and what writes its report."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mtl_jax.config.data import DataConfig
from mtl_jax.config.train import LIMITS, UNWEIGHTED, Settings, TrainConfig
from mtl_jax.core import distributed
from mtl_jax.core.converted import ByTask, Converted, PathText, default, required
from mtl_jax.core.errors import UserError
from mtl_jax.core.file_lock import LEASE_SECONDS
from mtl_jax.core.paths import expanded
from mtl_jax.core.type_checks import refuse_types
from mtl_jax.studies.budget import Budget
from mtl_jax.studies.work_queue import claim_name

Made = TypeVar("Made")
Key = tuple[str, int, tuple[tuple[str, Any], ...]]
Report = Callable[[Path, list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]], Path]
"""Writes what was found and prints it: folder, results, failures and context in, the path of
``report.html`` out."""

# Of a run with many passes over few texts; each costs as much as training on the validation texts.
_MEASUREMENTS = 8

ANY_DEPTH = 200
"""More layers than any encoder has, where a backbone has not been read."""

DONE = " (done)"
"""What --list-arms has behind a line whose arms are done."""

# What is to be done, in the place of all.
_WHAT = ("list_arms", "worker", "gather")
# Of the work of several workers, which no result depends on.
_OF_WORKERS = ("tries", "lease_seconds")
_LONGEST_LEASE = 86_400
_OF_A_RUN = tuple(field.name for field in dataclasses.fields(Settings))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySettings(Settings):
    """What the studies have in common, beside what a run is set by.

        settings = mtl.studies.StudySettings(workdir="runs/warmup", seeds=(0, 1, 2), epochs=5)

    Its fields are the flags of every study, whose ``--help`` describes each.
    """

    workdir: Converted[PathText, str] = required()
    """folder for the arms, results.jsonl and the report; run the same command again to resume"""
    class_weights: Converted[ByTask, tuple[str, ...]] = default(())
    """task=balanced pairs: give all classes of a task the same influence on its loss; or \
task={"class": 2}, in JSON, with 1 for classes that are not named. By default 1 in every arm, so \
that all have the same loss"""
    # A permutation test of fewer than six pairs can't have a two-sided p below 0.05.
    seeds: tuple[int, ...] = tuple(range(6))
    """random seeds; each arm is trained once with each"""
    keep_checkpoints: bool = False
    """keep the checkpoints of all finished arms, not only those of the best"""
    keep_final_state: bool = False
    """let the last checkpoint of an arm have its last parameters and the state of the optimizer; \
otherwise it has the best parameters only"""
    seeds_at_once: int | None = None
    """number of seeds of an arm to train in one program, each on one device; by default all on \
an accelerator, which one batch of short texts does not fill, and 1 on a CPU; 1 if each seed has \
a training subset of its own"""
    distributed: bool = False
    """run as one of several processes that train each arm together; see train"""
    tune: str | None = None
    """choose the learning rates and passes of every arm on validation, with the same budget for \
each: a number of trials, such as 12, or of training FLOPs, such as 3e15FLOPs. Heads on a frozen \
backbone are tuned by sweeps, everything else by an Optuna study in the folder"""
    list_arms: bool = False
    """print the arms and train nothing; arms that are trained at once share a line, which ends \
in "(done)" when they are done"""
    worker: bool = False
    """run as one of any number of workers, on any machines that share the folder: train the arms \
that no other worker has claimed until none is left, and write no report"""
    tries: int = 2
    """how often workers try an arm that fails before they give it up"""
    lease_seconds: float = LEASE_SECONDS
    """seconds without a sign of life after which the arms of a worker on another machine are \
taken over; more than 60 on NFS, which may show a sign of life as late as that"""
    gather: bool = False
    """train nothing, and write the report from what the workers have finished so far"""

    def __post_init__(self) -> None:
        refuse_types(self, StudySettings)
        super().__post_init__()
        object.__setattr__(self, "workdir", os.fspath(self.workdir))
        self._refuse_empty("seeds")
        if strange := [seed for seed in self.seeds if not 0 <= seed < 2**32]:
            raise UserError(f"--seeds {strange[0]} must be between 0 and {2**32 - 1}")
        if self.seeds_at_once is not None and self.seeds_at_once < 1:
            raise UserError(f"--seeds-at-once {self.seeds_at_once} must be at least 1")
        if self.tries < 1:
            raise UserError(f"--tries {self.tries} must be at least 1")
        # Written so that nan is refused, too.
        if not 1.0 <= self.lease_seconds <= _LONGEST_LEASE:
            raise UserError(
                f"--lease-seconds {self.lease_seconds:g} must be between 1 and {_LONGEST_LEASE}"
            )
        _ = self.budget
        chosen = [f"--{name.replace('_', '-')}" for name in _WHAT if getattr(self, name)]
        if len(chosen) > 1:
            raise UserError(
                f"{' and '.join(chosen)} cannot be used together: leave one of them out"
            )

    def check(self, layers: int) -> None:
        """Refuses arms that there are not for a backbone of so many layers, before data is read.

        Raises:
            UserError: There is one.
        """

    def _refuse_empty(self, *names: str) -> None:
        """Drops what a list names twice, and refuses one that names nothing."""
        for name in names:
            values = tuple(dict.fromkeys(getattr(self, name)))
            if not values:
                raise UserError(f"--{name.replace('_', '-')} is empty: name at least one")
            object.__setattr__(self, name, values)

    def of_a_run(self) -> dict[str, Any]:
        """The settings that each of its runs has.

        All arms have the same loss, to differ only in what they train: the class weights that
        heads on a frozen backbone have by default are left out.
        """
        settings = {name: getattr(self, name) for name in _OF_A_RUN}
        if self.evens_classes:
            settings["class_weights"] = (*self.class_weights, UNWEIGHTED)
        return settings

    def passes(self, epochs: int) -> dict[str, int]:
        """So many epochs, measured some eight times at most, as settings of a run."""
        between = max(self.measure_every or 1, -(-epochs // _MEASUREMENTS))
        settled = {"min_steps": 0, "head_min_steps": 0}
        return {"epochs": epochs, "measure_every": between, **settled}

    @property
    def budget(self) -> Budget | None:
        """What each arm may cost to be tuned.

        Raises:
            UserError: ``tune`` is no budget.
        """
        return None if self.tune is None else Budget.parse(self.tune)

    def drawn(self, seed: int, **limits: Any) -> DataConfig:
        """The data of a seed: where they are a part of the training texts, a draw of its own.

        Args:
            seed: The seed.
            **limits: Of ``DataConfig``, in the place of those of ``data``.
        """
        return drawn(dataclasses.replace(self.data, **limits), seed)

    def arm(
        self,
        name: str,
        seed: int,
        own: Mapping[str, Any],
        setting: Mapping[str, Any] | None = None,
    ) -> Arm:
        """An arm with a seed; ``own`` are fields of its run, in the place of those of all runs."""
        fields = {**self.of_a_run(), "data": self.drawn(seed), **own}
        workdir = arm_folder(self.workdir, name, seed, setting or {})
        return Arm(name, TrainConfig(**fields, workdir=workdir, seed=seed), setting or {})

    def at_once(self, **limits: Any) -> int:
        """How many seeds of an arm are trained in one program on this machine.

        Args:
            **limits: As of ``drawn``.
        """
        import jax

        apart = self.drawn(0, **limits) != self.drawn(1, **limits)
        if apart or distributed.count() > 1:
            return 1
        return self.seeds_at_once or (1 if jax.default_backend() == "cpu" else len(self.seeds))

    def record(self) -> dict[str, Any]:
        """What may not change from one call on a folder to the next, as JSON."""
        settings = dataclasses.asdict(self)
        tuned = {} if self.tune is None else {"tune": str(self.budget)}
        return {name: settings[name] for name in _OF_A_RUN if name not in LIMITS} | tuned

    def described(self, *left_out: str) -> dict[str, Any]:
        """The settings as a report lists them, but for those that it shows elsewhere."""
        kept_apart = ("data", "watch", "workdir", "seeds", "keep_checkpoints", "distributed")
        gone = (*kept_apart, *_WHAT, *_OF_WORKERS, *left_out)
        settings = dataclasses.asdict(self) | {"seeds_at_once": self.at_once()}
        kept = {name: value for name, value in settings.items() if name not in gone}
        subset = self.data.train_subset
        of_seeds = "one for each seed" if subset is None else subset
        return kept | dataclasses.asdict(self.data) | {"train_subset": of_seeds}


def drawn(data: DataConfig, seed: int) -> DataConfig:
    """The data of a seed; see ``StudySettings.drawn``."""
    if data == data.whole() or data.train_subset is not None:
        return data
    return dataclasses.replace(data, train_subset=seed)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One run of a study.

    Attributes:
        name: What it is called; several seeds and settings share it.
        config: The run.
        setting: What else tells it from others of its name, as JSON values by name.
        tuned: What its rates and its length were chosen from, where they were.
    """

    name: str
    config: TrainConfig
    setting: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tuned: Mapping[str, Any] | None = None

    @property
    def key(self) -> Key:
        """What tells it from every other arm of the study."""
        return (self.name, self.config.seed, tuple(self.setting.items()))

    @property
    def identity(self) -> dict[str, Any]:
        """The same as the first fields of a line of ``results.jsonl``."""
        setting = {"setting": dict(self.setting)} if self.setting else {}
        return {"arm": self.name, "seed": self.config.seed, **setting}

    @property
    def claim(self) -> str:
        """What the claims of workers that train it are called."""
        return claim_name(self.config.workdir)

    def __str__(self) -> str:
        setting = "".join(f", {name} {value}" for name, value in self.setting.items())
        return f"{self.name}, seed {self.config.seed}{setting}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study trains, and what it leaves.

    Attributes:
        workdir: The folder of the study.
        record: What may not change from one call on the folder to the next; arms may be added.
        groups: The arms; those of a group differ in the seed only and are trained at once.
        report: See ``Report``.
        settings: For the report, by name.
        question: What the study asks, as the title of its report; empty where that has a title.
        notes: What to say before the first arm.
        files: JSON files that the arms read, by their path in the folder.
        keep_checkpoints: Whether those of finished arms stay.
        tune: What each arm may cost to be tuned; None where none is.
        report_every: Seconds of training between two reports on what is done so far.
    """

    workdir: str
    record: Mapping[str, Any]
    groups: Sequence[Sequence[Arm]]
    report: Report
    settings: Mapping[str, Any]
    question: str = ""
    notes: Sequence[str] = ()
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keep_checkpoints: bool = False
    tune: Budget | None = None
    report_every: float = 300.0


def by_seeds(
    names: Sequence[str], seeds: Sequence[int], at_once: int, make: Callable[[str, int], Made]
) -> Iterator[list[Made]]:
    """Groups of ``make(name, seed)`` that are trained at once, so many seeds at a time.

    They come seed by seed, so that a study cut short has whole seeds to compare.
    """
    for start in range(0, len(seeds), at_once):
        for name in names:
            yield [make(name, seed) for seed in seeds[start : start + at_once]]


def arm_folder(workdir: str, name: str, seed: int, setting: Mapping[str, Any]) -> str:
    """Where an arm is trained: a name that can be read, and that no other arm has."""
    plain = [name, *("-".join(map(str, pair)) for pair in setting.items())]
    # Rules may be longer than a folder's name.
    safe = [re.sub(r"[^A-Za-z0-9.-]+", "_", text)[:64] for text in plain]
    marks = [
        "" if text == kept else f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        for text, kept in zip(plain, safe, strict=True)
    ]
    parts = [*(kept + mark for kept, mark in zip(safe, marks, strict=True)), f"seed{seed}"]
    return str(expanded(workdir) / "arms" / "-".join(parts))
