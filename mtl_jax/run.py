"""One scenario and seed made ready: parameters, partition, compiled steps, data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from mtl_jax.config import LIMITS, TrainConfig
from mtl_jax.data.batches import HostBatch, TextSet
from mtl_jax.data.packing import Layout, TrainPlan
from mtl_jax.evaluate import ModelSpec, evaluator
from mtl_jax.freeze import Freeze, Params
from mtl_jax.inputs import Inputs, Split
from mtl_jax.optim import OptimizerConfig, make_optimizer
from mtl_jax.parallel import Compiled, make_runner
from mtl_jax.prefix import SHALLOWEST, Prefix
from mtl_jax.scenarios import scenario_rules
from mtl_jax.step import Program, TrainState, scanned_steps, stream, train_step

# Steps on kept vectors between two looks at the progress; they take milliseconds.
_STEPS_AT_ONCE = 256

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
    states_depth: int
    steps_at_once: int
    remat: bool
    scan_layers: bool


class Stepper:
    """Runs training steps: one at a time, or many at once where only heads are trained.

    Attributes:
        program: What the steps are compiled for.
        most: Steps at a time, at most.
        step: The compiled step.
    """

    def __init__(self, spec: TrainSpec):
        self.program = Program(
            spec.model.model().clone(
                states_depth=spec.states_depth,
                blocks=spec.layout.blocks,
                remat=spec.remat,
                scan_layers=spec.scan_layers,
            ),
            make_optimizer(spec.freeze, spec.optimizer),
            spec.freeze.depth(spec.model.bert.num_hidden_layers),
            spec.task_weights,
        )
        self.most = spec.steps_at_once
        self._runner = make_runner(spec.model.parallel)
        step = scanned_steps if spec.on_pooled else train_step
        self.step = Compiled(self._runner, step, self.program, donate=True)

    def vectors(self, texts: TextSet) -> Any:
        """What ``__call__`` needs of texts with ``pooled`` vectors, on every device."""
        if texts.pooled is None:
            return None
        return self._runner.replicate({"pooled": texts.pooled, **texts.labels})

    def __call__(
        self, state: TrainState, frozen: Params, vectors: Any, batches: Sequence[HostBatch]
    ) -> tuple[TrainState, list[Any]]:
        """Takes one step per batch.

        Args:
            state: Given away.
            frozen: The frozen partition.
            vectors: From ``vectors``.
            batches: At most ``most`` of them, from ``train_batches``.

        Returns:
            The state after the last, and the metrics of each step.
        """
        if vectors is None:
            batch = {name: array for name, array in batches[0].items() if name != "example"}
            state, metrics = self.step(state, frozen, self._runner.shard(batch))
            return state, [self._runner.fetch(metrics)]
        rows, slots = batches[0]["example"].shape
        examples = np.full((rows, self.most, slots), -1, np.int32)
        for i, batch in enumerate(batches):
            examples[:, i] = batch["example"]
        sharded = self._runner.shard({"example": examples})
        state, metrics = self.step(state, frozen, vectors, sharded)
        metrics = jax.tree.map(np.asarray, self._runner.fetch(metrics))
        return state, [jax.tree.map(lambda m, i=i: m[i], metrics) for i in range(len(batches))]


# A study holds as many scenarios as this at a time.
_stepper = functools.lru_cache(maxsize=16)(Stepper)


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
            fused_attention=config.fused_attention,
        )
        heads = self._model.model().init_heads(stream(config.seed, "heads"))
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
        self._splits: dict[str, Split] = {}

    @property
    def evaluation_compile_seconds(self) -> float:
        """What this run has spent compiling the evaluation."""
        return self.evaluator.compile_seconds - self._compiled_before

    def split(self, name: str) -> Split:
        """A split, with what the frozen bottom of the backbone makes of its texts.

        It is kept for as long as this object lives.
        """
        if name not in self._splits:
            split = self.inputs.split(name)
            if self.config.prefix_cache and self.states_depth >= SHALLOWEST:
                split = self._with_kept(split, name)
            self._splits[name] = split
        return self._splits[name]

    def _with_kept(self, split: Split, name: str) -> Split:
        if self.freeze.backbone_frozen:
            texts, seconds = self._prefix.pooled(split.texts)
        else:
            texts, seconds = self._prefix.states(split.texts, self.states_depth)
        if name == "train":
            self.feature_seconds = seconds
        return dataclasses.replace(split, texts=texts)

    @functools.cached_property
    def _prefix(self) -> Prefix:
        return Prefix(self._model, self.evaluator, self.inputs.stages, self.inputs.store)

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rates rise."""
        return round(self.config.warmup_fraction * self.total_steps)

    @property
    def states_depth(self) -> int:
        """Where the frozen bottom of the backbone ends; see ``prefix``."""
        return self.freeze.depth(self.inputs.bert.num_hidden_layers)

    def stepper(self) -> Stepper:
        """The compiled training step, shared by runs that differ in nothing of it."""
        config = self.config
        optimizer = OptimizerConfig(
            learning_rates=(
                ("head", config.head_learning_rate),
                ("backbone", config.backbone_learning_rate),
            ),
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )
        weights = (config.classifier_weight, config.sentiment_weight)
        on_pooled = config.prefix_cache and self.freeze.backbone_frozen
        return _stepper(
            TrainSpec(
                self._model,
                self.freeze,
                optimizer,
                weights,
                self.plan.layout,
                on_pooled,
                self.states_depth if config.prefix_cache else 0,
                min(self.plan.steps, _STEPS_AT_ONCE) if on_pooled else 1,
                config.remat,
                config.scan_layers,
            )
        )

    def record(self) -> dict[str, Any]:
        """``config.json``: everything that is needed to repeat the run."""
        settings = dataclasses.asdict(self.config)
        del settings["workdir"]
        limits = {name: settings.pop(name) for name in LIMITS}
        return {
            "settings": settings,
            "rules": self._rules,
            **self.inputs.record(),
            "environment": {
                "limits": limits,
                "versions": {package: version(package) for package in _PACKAGES},
                "devices": [device.device_kind for device in jax.local_devices()],
            },
        }
