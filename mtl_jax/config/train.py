"""What a run is made of, as frozen dataclasses. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from mtl_jax.config.checkpoint import CheckpointSettings
from mtl_jax.config.data import DataConfig, absolute_path
from mtl_jax.config.extensions import as_paths, by_task, paths_by_name
from mtl_jax.config.lora import LoraSettings
from mtl_jax.config.model import ModelSettings
from mtl_jax.config.monitoring import MonitoringConfig
from mtl_jax.config.optimizer import OptimizerSettings
from mtl_jax.config.scenario import Rules, is_inline, scenario_text
from mtl_jax.config.tasks import numbers_of, pairs_of
from mtl_jax.core.converted import Code, CodeByName, Converted, PathText, default, required
from mtl_jax.core.errors import UserError, no_trained_head
from mtl_jax.core.paths import expanded
from mtl_jax.core.type_checks import refuse_types

DEFAULT_DATA = DataConfig()
DEFAULT_WATCH = MonitoringConfig()
DEFAULT_SCENARIO = "backbone_frozen"
# Hidden units of a head that is a multilayer perceptron, such as 256,64.
_UNITS = re.compile(r"[1-9]\d{0,5}(,[1-9]\d{0,5}){0,7}")
# Of class weights: classes weigh alike, also where imbalanced ones have weights by default.
UNWEIGHTED = "none"

# A run may go on with others of these: what is kept and what is shown changes no number, and over
# how many devices and micro-batches a batch is spread changes their rounding only, and in
# micro-batches dropout's masks.
LIMITS = (
    "accumulate",
    "callbacks",
    "cache_size",
    "cache_folder",
    "measure_train",
    "checkpoint_minutes",
    "checkpoint_every",
    "keep_latest",
    "keep_every",
    "keep_final_state",
    "parallel",
    "shard",
    "watch",
)


# --help lists the flags of the last base first.
@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(CheckpointSettings, LoraSettings, OptimizerSettings, ModelSettings):
    """What a run and a study of many runs have in common."""

    data: Converted[DataConfig | Mapping[str, Any], DataConfig] = default(DEFAULT_DATA)
    """Which texts and labels a run reads."""
    metrics: Converted[CodeByName, tuple[str, ...]] = default(())
    """name=module:function pairs: additional metrics, (labels, predictions) -> number, for all \
tasks, or for the kinds of tasks in the function's attribute kinds"""
    callbacks: Converted[Code | Sequence[Code], tuple[str, ...]] = default(())
    """module:function to call with every line of metrics.jsonl, as a dict, when it is written"""
    watch: Converted[MonitoringConfig | Mapping[str, Any], MonitoringConfig] = default(
        DEFAULT_WATCH
    )

    def __post_init__(self) -> None:
        refuse_types(self, Settings)
        for group in (ModelSettings, OptimizerSettings, LoraSettings, CheckpointSettings):
            group.__post_init__(self)
        for name, kind in (("data", DataConfig), ("watch", MonitoringConfig)):
            object.__setattr__(self, name, _made(kind, getattr(self, name), name))
        for name in ("metrics", "callbacks"):
            object.__setattr__(self, name, as_paths(name, getattr(self, name)))
        for name, every in (("heads", False), ("loss", True)):
            _ = paths_by_name(f"--{name}", getattr(self, name), self.data.tasks, every=every)
        _ = self.hidden_units, self.smoothing, self.weights_of_classes
        self._refuse_lost_terms()
        for task, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                given = pairs_of("--task-weights", self.task_weights, "weight")[task]
                raise UserError(f"--task-weights {task}={given} must be a number of 0 or more")

    def _refuse_lost_terms(self) -> None:
        """Refuses what is asked of the losses of tasks that would do nothing there."""
        own = paths_by_name("--loss", self.loss, self.data.tasks, every=True)
        for task in self.data.soft_columns:
            if task in own:
                raise UserError(
                    f"--soft-labels names {task}, which has a loss of its own (--loss): leave one "
                    "of them out"
                )
        if self.r_drop and set(self.data.kinds.values()) == {"regression"}:
            raise UserError(
                f"--r-drop {self.r_drop} is for tasks with classes, and all are regressions: "
                "leave it out"
            )

    @property
    def weights(self) -> dict[str, float]:
        """What the mean loss of each task is multiplied by, in the order of the tasks."""
        given = numbers_of("--task-weights", self.task_weights, "weight", self.data.tasks)
        return {task: given.get(task, 1.0) for task in self.data.tasks}

    @property
    def hidden_units(self) -> dict[str, tuple[int, ...]]:
        """Units of the hidden layers of each head that is a multilayer perceptron.

        Raises:
            UserError: One is no such list, or of a task with a head of the user's own.
        """
        flag, tasks = "--mlp-heads", self.data.tasks
        own = paths_by_name("--heads", self.heads, tasks)
        others = [task for task in tasks if task not in own]
        found = by_task(flag, self.mlp_heads, "units", tasks, only=others)
        for task, units in found.items():
            if task in own:
                raise UserError(f"{flag} and --heads both name {task}: leave one of them out")
            if not _UNITS.fullmatch(units):
                raise UserError(
                    f"{flag} {units!r}: name the units of each hidden layer, such as 256 or 256,64"
                )
        return {task: tuple(map(int, units.split(","))) for task, units in found.items()}

    @property
    def smoothing(self) -> dict[str, float]:
        """The part of the labels of each task that is smoothed, above 0 and below 1.

        Raises:
            UserError: One is no such number, or of a regression.
        """
        flag, kinds = "--label-smoothing", self.data.kinds
        own = paths_by_name("--loss", self.loss, self.data.tasks, every=True)
        classed = [task for task, kind in kinds.items() if kind != "regression" and task not in own]
        given = by_task(flag, self.label_smoothing, "part", self.data.tasks, only=classed)
        found = {}
        for task, words in given.items():
            self._refuse_no_classes(flag, task)
            try:
                found[task] = float(words)
            except ValueError:
                found[task] = math.nan
            if not 0 <= found[task] < 1:
                raise UserError(f"{flag} {words!r} must be a number from 0 to below 1")
        return {task: part for task, part in found.items() if part}

    @property
    def weights_of_classes(self) -> dict[str, Literal["balanced"] | dict[str, float]]:
        """What ``class_weights`` says of each task that it names; see ``evens_classes``.

        Raises:
            UserError: It is neither ``balanced`` nor weights by class, or of a regression.
        """
        flag = "--class-weights"
        found: dict[str, Literal["balanced"] | dict[str, float]] = {}
        pairs = [pair for pair in self.class_weights if pair != UNWEIGHTED]
        for task, words in pairs_of(flag, pairs, "balanced", self.data.tasks).items():
            self._refuse_no_classes(flag, task)
            try:
                weights: Any = "balanced" if words == "balanced" else json.loads(words)
            except (ValueError, RecursionError):
                weights = None
            if weights != "balanced" and not _are_weights(weights):
                raise UserError(
                    f"{flag} {task}={words}: write balanced, or the weights of classes above 0 in "
                    f'JSON, such as {task}={{"rare": 2.5}}'
                )
            found[task] = weights
        return found

    @property
    def evens_classes(self) -> bool:
        """Whether imbalanced classes of tasks without class weights get some by default."""
        return UNWEIGHTED not in self.class_weights

    def _refuse_no_classes(self, flag: str, task: str) -> None:
        if self.data.kinds[task] == "regression":
            raise UserError(
                f"{flag} names {task}, a regression, which has no classes: leave it out"
            )
        if task in paths_by_name("--loss", self.loss, self.data.tasks, every=True):
            raise UserError(
                f"{flag} names {task}, which has a loss of its own (--loss): leave one of them out"
            )

    def absolute(self) -> Self:
        """The same, with file names that hold from any folder."""
        folder = expanded(self.backbone)
        return dataclasses.replace(
            self,
            data=self.data.absolute(),
            backbone=absolute_path(self.backbone) if folder.is_dir() else self.backbone,
            cache_folder=absolute_path(self.cache_folder) if self.cache_folder else None,
        )


def _made(kind: type[Any], value: Any, name: str) -> Any:
    """A group of settings from itself, or from its fields, as ``dataclasses.asdict`` has them.

    Raises:
        UserError: It has a field that there is not.
    """
    if isinstance(value, Mapping):
        fields = [field.name for field in dataclasses.fields(kind)]
        if strange := [each for each in value if each not in fields]:
            raise UserError(f"{name} has the field {strange[0]!r}: use {', '.join(fields)}")
        return kind(**value)
    return value


def _are_weights(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < math.inf
        for weight in value.values()
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RunSettings:
    """What one run trains, and where; a base of its own, so that ``--help`` lists it first."""

    workdir: Converted[PathText, str] = required()
    """folder for settings, metrics, certificate and checkpoints; run the same command again to \
resume"""
    scenario: Converted[PathText | Rules | None, str | None] = default(None)
    """what to freeze: all_frozen, backbone_frozen (the default), bias_only, layer_norm_only, \
none_frozen, or the head of a task (classifier_frozen); top_1, top_2, ..., first_k, middle_k or \
only_i to train some layers only; lora_8, ... to train low-rank factors; or [pattern, label] \
rules, as a JSON file or directly"""
    recipe: Converted[PathText | None, str | None] = default(None)
    """instead of a scenario, a sequence of phases: gradual_unfreezing, top_down_1, top_down_2, \
..., lp_ft, sequential_heads, scarce_head_last, auto, or a .json or .py file of phases"""
    seed: int = 0
    """random seed of the heads, the order of the data, and dropout"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings, _RunSettings):
    """One training run: everything that is needed to repeat it.

        data = mtl.DataConfig(train_file="train.csv", label_columns=("topic=topic",))
        config = mtl.TrainConfig(workdir="runs/mine", scenario="top_2", data=data, epochs=3)

    Its fields are the flags of ``train``, whose ``--help`` describes each. A head, loss, schedule,
    metric or callback is a class or function that a module defines, or its ``module:name``.
    """

    distributed: bool = False
    """run as one of several processes of this training, which JAX finds by itself: under Slurm, \
on TPU pods, in Kubernetes, under Open MPI, or as ./launch.sh local starts them"""

    def __post_init__(self) -> None:
        refuse_types(self, _RunSettings)
        super().__post_init__()
        for name in ("workdir", "recipe"):
            if isinstance(path := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(path))
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed} must be between 0 and {2**32 - 1}")
        object.__setattr__(self, "scenario", scenario_text(self.scenario))
        if self.recipe is None and self.scenario is None:
            object.__setattr__(self, "scenario", DEFAULT_SCENARIO)
        elif self.recipe is not None and self.scenario is not None:
            raise UserError(
                f"--recipe {self.recipe} names its scenarios itself: leave --scenario "
                f"{self.scenario} out"
            )
        if self.hold_frozen_heads and self.recipe is None:
            why = f"--scenario {self.scenario} is one phase: use a --recipe"
            raise no_trained_head(self.hold_frozen_heads, why)

    def absolute(self) -> Self:
        """See ``Settings.absolute``."""
        files = {
            name: absolute_path(value)
            for name in ("scenario", "recipe")
            if (value := getattr(self, name))
            and value.endswith((".json", ".py"))
            and not is_inline(value)
        }
        return dataclasses.replace(super().absolute(), **files)

    @property
    def name(self) -> str:
        """What the run is called: its scenario or its recipe."""
        return str(self.scenario if self.recipe is None else self.recipe)
