"""One scenario and seed made ready: parameters, partition, compiled steps, data."""

from __future__ import annotations

import dataclasses
import functools
import time
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from mtl_jax.config import TrainConfig
from mtl_jax.data.packing import Layout, TrainPlan
from mtl_jax.evaluate import ModelSpec, evaluator
from mtl_jax.freeze import Freeze, Params
from mtl_jax.inputs import Inputs, Split
from mtl_jax.optim import OptimizerConfig, make_optimizer
from mtl_jax.parallel import Compiled, make_runner
from mtl_jax.scenarios import scenario_rules
from mtl_jax.step import Program, train_step

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """What a training step is compiled from; equal specs share the compiled step."""

    model: ModelSpec
    freeze: Freeze
    optimizer: OptimizerConfig
    task_weights: tuple[float, float]
    layout: Layout
    on_pooled: bool


# A study holds as many scenarios as this at a time.
@functools.lru_cache(maxsize=16)
def _compiled(spec: TrainSpec) -> tuple[Program, Compiled]:
    program = Program(
        spec.model.model(),
        make_optimizer(spec.freeze, spec.optimizer),
        spec.freeze.depth(spec.model.bert.num_hidden_layers),
        spec.task_weights,
    )
    return program, Compiled(make_runner(spec.model.parallel), train_step, program, donate=True)


class Run:
    """One scenario and seed on its inputs, before its first step.

    Attributes:
        params: The initial parameters, on the host.
        freeze: Which of them train.
        evaluator: The compiled evaluation.
        plan: Where every training text goes.
        total_steps: Steps of the whole run; 0 where nothing trains.
        feature_seconds: What computing the frozen backbone's vectors of the training texts
            took, where that is what the heads train on.
    """

    def __init__(self, config: TrainConfig, inputs: Inputs):
        self.config, self.inputs = config, inputs
        self._rules = scenario_rules(config.scenario, inputs.bert.num_hidden_layers)
        self._model = ModelSpec(
            bert=inputs.bert,
            classes=(len(inputs.classes["classifier"]), len(inputs.classes["sentiment"])),
            pooling=inputs.pooling,
            dtype=config.dtype,
            max_length=inputs.reader.max_length,
            parallel=config.parallel,
        )
        heads = self._model.model().init_heads(jax.random.key(config.seed))
        # On the host: a copy on a device is given away with the state that it begins.
        heads = jax.tree.map(np.array, heads)
        self.params: Params = {"backbone": inputs.backbone, **heads}
        self.freeze = Freeze.from_rules(self.params, self._rules)
        self.evaluator = evaluator(self._model)
        self._compiled_before = self.evaluator.compile_seconds
        self.plan = TrainPlan(
            inputs.split("train").texts.tokens.lengths,
            config.batch_size,
            self.evaluator.runner.devices,
            inputs.bert.hidden_size,
        )
        self.total_steps = self.plan.steps * config.epochs if self.freeze.groups else 0
        self.feature_seconds = 0.0

    @property
    def evaluation_compile_seconds(self) -> float:
        """What this run has spent compiling the evaluation."""
        return self.evaluator.compile_seconds - self._compiled_before

    def split(self, name: str) -> Split:
        """A split; with pooled vectors where the whole backbone is frozen."""
        split = self.inputs.split(name)
        if not self.freeze.backbone_frozen:
            return split
        key = (name, self.config.dtype)
        if key not in self.inputs.pooled:
            started = time.perf_counter() - self.evaluator.compile_seconds
            params = self.evaluator.runner.replicate(self.params)
            vectors = self.evaluator.pooled(params, split.texts)
            seconds = time.perf_counter() - self.evaluator.compile_seconds - started
            self.inputs.pooled[key] = vectors, seconds
        vectors, seconds = self.inputs.pooled[key]
        if name == "train":
            self.feature_seconds = seconds
        return dataclasses.replace(split, texts=dataclasses.replace(split.texts, pooled=vectors))

    def compiled(self) -> tuple[Program, Compiled]:
        """The training program and its step, shared by runs that differ in nothing of it."""
        config = self.config
        optimizer = OptimizerConfig(
            learning_rates=(
                ("head", config.head_learning_rate),
                ("backbone", config.backbone_learning_rate),
            ),
            total_steps=self.total_steps,
            warmup_steps=round(config.warmup_fraction * self.total_steps),
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )
        weights = (config.classifier_weight, config.sentiment_weight)
        return _compiled(
            TrainSpec(
                self._model,
                self.freeze,
                optimizer,
                weights,
                self.plan.layout,
                self.freeze.backbone_frozen,
            )
        )

    def record(self) -> dict[str, Any]:
        """``config.json``: everything that is needed to repeat the run."""
        settings = dataclasses.asdict(self.config)
        del settings["workdir"]
        return {
            "settings": settings,
            "rules": self._rules,
            **self.inputs.record(),
            "environment": {
                "versions": {package: version(package) for package in _PACKAGES},
                "devices": [device.device_kind for device in jax.local_devices()],
            },
        }
