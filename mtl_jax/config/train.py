"""What a run is made of, as frozen dataclasses. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
import math
from typing import Self

from mtl_jax.config.checkpoint import CheckpointSettings
from mtl_jax.config.data import DataConfig, absolute_path
from mtl_jax.config.extensions import as_paths, paths_by_name
from mtl_jax.config.lora import LoraSettings
from mtl_jax.config.model import ModelSettings
from mtl_jax.config.monitoring import MonitoringConfig
from mtl_jax.config.optimizer import OptimizerSettings
from mtl_jax.config.scenario import is_inline, scenario_text
from mtl_jax.config.tasks import numbers_of, pairs_of
from mtl_jax.core.errors import UserError, no_trained_head
from mtl_jax.core.paths import expanded

DEFAULT_DATA = DataConfig()
DEFAULT_WATCH = MonitoringConfig()
DEFAULT_SCENARIO = "backbone_frozen"

# A run may go on with others of these: what is kept and what is shown changes no number, and over
# how many devices a batch is spread changes their rounding only.
LIMITS = (
    "callbacks",
    "cache_size",
    "cache_folder",
    "checkpoint_every",
    "keep_latest",
    "keep_every",
    "parallel",
    "watch",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings, OptimizerSettings, LoraSettings, CheckpointSettings):
    """What a run and a study of many runs have in common."""

    data: DataConfig = DEFAULT_DATA
    metrics: tuple[str, ...] = ()
    """name=module:function pairs: further metrics, (labels, predicted) -> number"""
    callbacks: tuple[str, ...] = ()
    """module:function, called with every line of metrics.jsonl, a dict, as it is written"""
    watch: MonitoringConfig = DEFAULT_WATCH

    def __post_init__(self) -> None:
        for group in (ModelSettings, OptimizerSettings, LoraSettings, CheckpointSettings):
            group.__post_init__(self)
        for name in ("metrics", "callbacks"):
            object.__setattr__(self, name, as_paths(name, getattr(self, name)))
        for name, every in (("heads", False), ("loss", True)):
            _ = paths_by_name(f"--{name}", getattr(self, name), self.data.tasks, every=every)
        for task, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                given = pairs_of("--task-weights", self.task_weights, "weight")[task]
                raise UserError(f"--task-weights {task}={given} must be a number of 0 or more")

    @property
    def weights(self) -> dict[str, float]:
        """What the mean loss of each task is multiplied by, in the order of the tasks."""
        given = numbers_of("--task-weights", self.task_weights, "weight", self.data.tasks)
        return {task: given.get(task, 1.0) for task in self.data.tasks}

    def absolute(self) -> Self:
        """The same, with file names that hold from any folder."""
        folder = expanded(self.backbone)
        return dataclasses.replace(
            self,
            data=self.data.absolute(),
            backbone=absolute_path(self.backbone) if folder.is_dir() else self.backbone,
            cache_folder=absolute_path(self.cache_folder) if self.cache_folder else None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """One training run. Everything that is needed to repeat it."""

    workdir: str
    """folder for config, metrics, certificate and checkpoints; run again to resume"""
    scenario: str | None = None
    """what is frozen: all_frozen, backbone_frozen (the default), bias_only, layer_norm_only, \
none_frozen, a task's head (classifier_frozen); all but some layers: top_1, top_2, ..., first_k, \
middle_k, only_i; all but factors of rank r beside kernels: lora_8, ...; or [pattern, label] \
rules: a JSON file, or the list"""
    recipe: str | None = None
    """in the place of a scenario, several in turn: gradual_unfreezing, top_down_1, top_down_2, \
..., lp_ft, sequential_heads, scarce_head_last, auto, or a .json or .py file of phases"""
    seed: int = 0
    """seeds the heads, the order of the data and dropout"""
    distributed: bool = False
    """be one of several processes of this run, which JAX finds: under Slurm, on TPU pods, in \
Kubernetes, under Open MPI, or as ./launch.sh local starts them"""

    def __post_init__(self) -> None:
        super().__post_init__()
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
