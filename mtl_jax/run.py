"""One scenario and seed made ready: parameters, partition, compiled steps, data."""

from __future__ import annotations

import dataclasses
import functools
import math
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from mtl_jax.config import LIMITS, TrainConfig
from mtl_jax.evaluate import ModelSpec, evaluator
from mtl_jax.freeze import Freeze, Params
from mtl_jax.inputs import Inputs, Split
from mtl_jax.optim import OptimizerConfig
from mtl_jax.parallel import make_runner
from mtl_jax.prefix import SHALLOWEST, Prefix
from mtl_jax.scenarios import scenario_rules
from mtl_jax.step import stream
from mtl_jax.stepper import Stepper, TrainSpec, stepper
from mtl_jax.weighting.base import Weighting
from mtl_jax.weighting.methods import make_weighting, useless

# Steps on kept vectors between two looks at the progress; they take milliseconds.
_STEPS_AT_ONCE = 256

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Run:
    """One scenario and seed on its inputs, before its first step.

    Args:
        config: The settings.
        inputs: The data and the backbone.
        together: Whether it is trained at once with other seeds, and so with each batch
            whole on one device; else ``config.parallel`` spreads it.

    Attributes:
        params: The initial parameters, on the host.
        freeze: Which of them train.
        evaluator: The compiled evaluation.
        plan: Where every training text goes.
        total_steps: Steps of the whole run; 0 where nothing trains.
        feature_seconds: What the frozen layers take to make of the training texts, from their
            ids, what the run keeps of it, in full even where it was kept before; 0 where
            nothing is kept.
    """

    def __init__(self, config: TrainConfig, inputs: Inputs, *, together: bool = False):
        self.config, self.inputs = config, inputs
        self._together = together
        self._rules = scenario_rules(config.scenario, inputs.bert.num_hidden_layers)
        devices = 1 if together else make_runner(config.parallel).devices
        self.plan = inputs.plan(config.batch_size, devices)
        self._model = ModelSpec(
            bert=inputs.bert,
            classes=(len(inputs.classes["classifier"]), len(inputs.classes["sentiment"])),
            pooling=inputs.pooling,
            dtype=config.dtype,
            max_length=inputs.reader.max_length,
            parallel=config.parallel,
            fused_attention=config.fused_attention,
            like=self.plan.layout,
        )
        heads = self._model.model().init_heads(stream(config.seed, "heads"))
        # On the host: a copy on a device is given away with the state that it begins.
        heads = jax.tree.map(np.array, heads)
        self.params: Params = {"backbone": inputs.backbone, **heads}
        self.freeze = Freeze.from_rules(self.params, self._rules)
        self.evaluator = evaluator(self._model)
        self._compiled_before = self.evaluator.compile_seconds
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

    @property
    def _task_weights(self) -> tuple[float, float]:
        return self.config.classifier_weight, self.config.sentiment_weight

    @property
    def weighting(self) -> Weighting:
        """How the losses of the tasks are weighed against each other."""
        return make_weighting(self.config.weighting, self.plan.steps)

    @property
    def useless_weighting(self) -> str | None:
        """Why that can do nothing in this run; None where it can."""
        return useless(self.weighting, self.freeze, self._task_weights)

    def stepper(self, seeds: int = 1) -> Stepper:
        """The compiled training step, shared by runs that differ in nothing of it.

        Args:
            seeds: How many runs that are trained ``together`` it takes at once.
        """
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
        on_pooled = config.prefix_cache and self.freeze.backbone_frozen
        return stepper(
            TrainSpec(
                model=self._model,
                freeze=self.freeze,
                optimizer=optimizer,
                task_weights=self._task_weights,
                weighting=self.weighting,
                layout=self.plan.layout,
                on_pooled=on_pooled,
                states_depth=self.states_depth if config.prefix_cache else 0,
                steps_at_once=_even(self.plan.steps) if on_pooled else 1,
                remat=config.remat,
                scan_layers=config.scan_layers,
                seeds=seeds if self._together else None,
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
                "layout": dataclasses.asdict(self.plan.layout),
                "devices": [device.device_kind for device in jax.local_devices()],
            },
        }


def _even(steps: int) -> int:
    """At most ``_STEPS_AT_ONCE``, so that the last of an epoch lack as few as can be."""
    # What is lacking is padded, and with several seeds on a device computed all the same.
    return math.ceil(steps / math.ceil(steps / _STEPS_AT_ONCE))
