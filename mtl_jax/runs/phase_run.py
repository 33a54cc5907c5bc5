"""One phase of a run made ready: parameters, partition, compiled steps, data."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.config.train import LIMITS, TrainConfig
from mtl_jax.core import distributed
from mtl_jax.core.imported import import_function
from mtl_jax.core.versions import version
from mtl_jax.data.kinds import has_label
from mtl_jax.freezing.partition import Params, Stages
from mtl_jax.freezing.scenarios import FROZEN
from mtl_jax.models.multitask import Loss
from mtl_jax.models.precision import default_dtype
from mtl_jax.runs.cached_splits import CachedSplits
from mtl_jax.runs.phase_plan import PhasePlan, on_the_way, plan_phases
from mtl_jax.training.compiled_step import (
    CompiledTrainStep,
    TrainSpec,
    compiled_step,
    drops_out,
)
from mtl_jax.training.evaluator import ModelSpec, evaluator, of_tasks
from mtl_jax.training.extensions import built_in_parts, class_weights_of, load_extensions
from mtl_jax.training.frozen_activations import SHALLOWEST, FrozenActivations
from mtl_jax.training.inputs import Inputs, Split
from mtl_jax.training.program import TrainState, stream
from mtl_jax.training.runners import make_runner
from mtl_jax.training.weighting.base import Weighting
from mtl_jax.training.weighting.registry import make_weighting, useless

# Steps on kept vectors between two looks at the progress; they take milliseconds.
_STEPS_AT_ONCE = 256

_PACKAGES = ("mtl-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class PhaseRun:
    """One seed in one phase of its scenario or recipe, on its inputs.

    Args:
        config: The settings.
        inputs: The data and the backbone.
        together: Whether it is trained at once with other seeds, and so with each batch
            whole on one device; else ``config.placement`` spreads it.

    Attributes:
        params: The parameters at the start of the phase, or those that it has been given.
        plans: The phases of the whole run.
        index: Which of them this is.
        partition: Which of the parameters train.
        evaluator: The compiled evaluation, the same in all phases.
        plan: Where every training text goes.
        total_steps: Steps of the phase at most; 0 where nothing trains.
    """

    def __init__(self, config: TrainConfig, inputs: Inputs, *, together: bool = False):
        dtype = config.dtype or default_dtype()
        config = dataclasses.replace(config, dtype=dtype)
        self.config, self.inputs = config, inputs
        self._together = together
        self._runner = None if together else make_runner(config.placement)
        # Each device has equally many rows of every micro-batch.
        devices = (self._runner.devices if self._runner else 1) * config.accumulate
        own = load_extensions(
            config.heads, config.loss, config.metrics, inputs.tasks, inputs.bert.hidden_size
        )
        training_labels = inputs.split("train").examples.labels
        self._class_weights = class_weights_of(config, inputs.tasks, training_labels)
        own += built_in_parts(config, inputs.tasks, inputs.bert, self._class_weights)
        for path in config.callbacks:
            import_function(path, "--callbacks")  # refused here, and not when the folder is made
        self._model = ModelSpec(
            bert=inputs.bert,
            **of_tasks(inputs.tasks.values()),
            pooling=inputs.pooling,
            dtype=dtype,
            max_length=inputs.reader.max_length,
            parallel=config.placement,
            fused_attention=config.fused_attention,
            heads=own.heads,
            losses=own.losses,
            metrics=own.metrics,
            like=inputs.layout_to_evaluate(config.batch_size, devices),
        )
        heads = self._model.model().init_heads(stream(config.seed, "heads"))
        # On the host: a copy on a device is given away with the state that it begins.
        heads = jax.tree.map(np.array, heads)
        plain: Params = {"backbone": inputs.backbone, **heads}
        self._devices = devices
        self.plans: tuple[PhasePlan, ...] = plan_phases(config, inputs, plain, devices)
        self.params: Params = self._with_factors(0, plain)
        self.evaluator = evaluator(self._model)
        several = distributed.count() > 1
        # What is kept of the frozen bottom is every process's own, for texts that others have too.
        self._own_evaluator = evaluator(dataclasses.replace(self._model, alone=several))
        self._compiled_before = self._compile_seconds()
        self._stages = inputs.stages
        self._enter(0)

    def _with_factors(self, index: int, params: Params) -> Params:
        """Parameters with the low-rank factors of a phase, and no others."""
        key = stream(self.config.seed, "lora")
        return self.plans[index].partition.with_factors(params, key)

    def _enter(self, index: int) -> None:
        self.index = index
        plan = self.plans[index]
        self.phase, self.partition, self.plan = plan.phase, plan.partition, plan.batches
        self.total_steps = plan.steps
        prefix = FrozenActivations(
            self._model, self._own_evaluator, self._stages, self.inputs.store
        )
        self._kept = CachedSplits(self.inputs, self.plans, index, prefix, self.keeps)

    def at(self, index: int, params: Params) -> PhaseRun:
        """The same run in another phase.

        Args:
            index: Which.
            params: All parameters as they are at its start, with or without its low-rank factors;
                others are merged into their kernels.
        """
        other = copy.copy(self)
        other.params = self._with_factors(index, params)
        other._stages = Stages(other.params["backbone"])
        other._enter(index)
        return other

    def with_head_learning_rate(self, rate: float) -> PhaseRun:
        """The same run before its first step, with that rate where ``rate_is_open`` says so."""
        other = copy.copy(self)
        other.plans = plan_phases(self.config, self.inputs, self.params, self._devices, rate)
        other._enter(0)
        return other

    @property
    def own_rows(self) -> slice:
        """Which rows of a batch this process makes."""
        rows = self.plan.layout.rows
        return self._runner.own(rows) if self._runner else slice(rows)

    @property
    def evaluation_compile_seconds(self) -> float:
        """What this run has spent compiling the evaluation."""
        return self._compile_seconds() - self._compiled_before

    def _compile_seconds(self) -> float:
        return sum(each.compile_seconds for each in {self.evaluator, self._own_evaluator})

    @property
    def training(self) -> Split:
        """The training texts with a label for a task whose loss counts, as ``split``."""
        return self.split("training")

    def split(self, name: str) -> Split:
        """A split, with what the frozen bottom of the backbone makes of its texts.

        It is kept for as long as this object lives, or until ``release``.
        """
        return self._kept.get(name)

    def release(self) -> None:
        """Lets the splits make room for those of others; they are recreated if asked for."""
        self._kept.release()

    @property
    def keeps(self) -> bool:
        """Whether what the frozen bottom makes of the texts is kept."""
        return self.config.prefix_cache and self.states_depth >= SHALLOWEST

    @property
    def feature_seconds(self) -> float:
        """What the frozen layers take to make of the training texts what the phase keeps of it.

        From their ids, in full even where it was kept before; 0 where nothing is kept.
        """
        return self._kept.training_seconds

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rates rise."""
        return self.plans[self.index].optimizer.warmup_steps

    @property
    def states_depth(self) -> int:
        """Where the frozen bottom of the backbone ends; see ``frozen_activations``."""
        return self.partition.depth(self.inputs.bert.num_hidden_layers)

    @property
    def epochs(self) -> float:
        """Passes over the training texts in all phases, at most."""
        passes = sum(plan.epochs(plan.steps) for plan in self.plans)
        return passes or sum(plan.phase.epochs or 0 for plan in self.plans)

    @property
    def prepared(self) -> bool:
        """Whether an earlier phase keeps the activations that this one starts from."""
        layers = self.inputs.bert.num_hidden_layers
        texts = self.plans[self.index].texts
        before = [i for i in range(self.index) if self.plans[i].texts == texts]
        return any(self.index in on_the_way(self.plans, i, layers) for i in before)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose losses count in any phase: what checkpoints are chosen by."""
        counted = {task for plan in self.plans for task in plan.phase.tasks}
        return tuple(task for task in self.inputs.classes if task in counted)

    def changed(self, params: Params) -> tuple[Params, str | None]:
        """What of the parameters may differ from the pre-trained encoder's, by this phase.

        Returns:
            That, and the encoder's digest; None where it has nothing that is left out.
        """
        trained = [
            {path for path, label in plan.partition.labels if label != FROZEN}
            for plan in self.plans[: self.index + 1]
        ]
        # The factors of earlier phases may have been merged into their kernels.
        before = set[str]().union(*trained[:-1])
        merged = {path.replace("/lora_a", "/kernel") for path in before}
        changed = merged.union(*trained)
        flat = flatten_dict(params, sep="/")
        pretrained = {f"backbone/{path}" for path in flatten_dict(self.inputs.backbone, sep="/")}
        own = {path: flat[path] for path in flat if path in changed or path not in pretrained}
        digest = self.inputs.weights_digest if len(own) < len(flat) else None
        return unflatten_dict(own, sep="/"), digest

    def start(self) -> TrainState:
        """The state before the first step, of the run's own parameters."""
        trainable, _ = self.partition.split(self.params)
        return self.compiled_step().program.init(trainable, self.config.seed)

    @property
    def features(self) -> list[str]:
        """Names the training texts, then each stage of the frozen bottom, from the lowest."""
        names = ["embeddings", *(f"layer_{i}" for i in range(self.states_depth - 1))]
        stages = [self._stages.digest(name) for name in names[: self.states_depth]]
        return [self.plans[self.index].texts, *stages]

    @property
    def weighting(self) -> Weighting:
        """How the losses of the tasks are weighed against each other; anew in each phase."""
        return make_weighting(self.config.weighting, self.plan.steps)

    @property
    def useless_weighting(self) -> str | None:
        """Why that can do nothing in this phase; None where it can."""
        labels = self.inputs.split("train").texts.labels
        weights = {
            task: weight * bool(has_label(labels[task]).any())
            for task, weight in self.phase.weights.items()
        }
        return useless(self.weighting, self.partition, weights, self.total_steps)

    @property
    def trained_losses(self) -> tuple[tuple[str, Loss], ...]:
        """``(task, loss)`` of those by which the phase trains and that are not the usual ones.

        Splits are measured by the losses of ``ModelSpec``, so that those of all scenarios compare.
        """
        weights = {task: [*own] for task, own in self.plans[self.index].class_weights}
        if not weights:
            return self._model.losses
        tasks, weights = self.inputs.tasks, self._class_weights | weights
        evened = built_in_parts(self.config, tasks, self.inputs.bert, weights)
        return tuple({**dict(self._model.losses), **dict(evened.losses)}.items())

    @property
    def r_drop(self) -> float:
        """The weight of R-Drop's divergence; 0 where two passes would be the same."""
        return (self.config.r_drop or 0.0) if self._drops_out else 0.0

    @property
    def _drops_out(self) -> bool:
        plan = self.plans[self.index]
        return drops_out(plan.partition, self.inputs.bert, plan.head_dropout)

    @property
    def useless_r_drop(self) -> str | None:
        """Why ``--r-drop`` does nothing in this phase; None where it does or is not asked for."""
        if self.config.r_drop is None or self._drops_out or not self.total_steps:
            return None
        return (
            "there is no dropout where this phase trains, so that two passes of a text are the "
            "same: --r-drop does nothing here"
        )

    def compiled_step(self, seeds: int = 1) -> CompiledTrainStep:
        """The compiled training step, shared by runs that differ in nothing of it.

        Args:
            seeds: How many runs that are trained ``together`` it takes at once.
        """
        return compiled_step(self.train_spec(seeds))

    def train_spec(self, seeds: int = 1) -> TrainSpec:
        """What that is compiled from; the argument is as of ``compiled_step``."""
        config, plan = self.config, self.plans[self.index]
        on_pooled = config.prefix_cache and self.partition.backbone_frozen
        return TrainSpec(
            model=dataclasses.replace(self._model, losses=self.trained_losses),
            partition=self.partition,
            optimizer=plan.optimizer,
            task_weights=tuple(self.phase.weights.values()),
            weighting=self.weighting,
            layout=self.plan.layout,
            on_pooled=on_pooled,
            states_depth=self.states_depth if config.prefix_cache else 0,
            steps_at_once=_even(self.plan.steps) if on_pooled else 1,
            remat=config.remat,
            scan_layers=config.scan_layers,
            seeds=seeds if self._together else None,
            hold_weight=(plan.phase.hold_frozen_heads or 0.0) if plan.held else 0.0,
            head_dropout=plan.head_dropout,
            accumulate=config.accumulate,
            r_drop=self.r_drop,
        )

    def record(self) -> dict[str, Any]:
        """``config.json``: everything that is needed to repeat the run."""
        settings = dataclasses.asdict(self.config)
        del settings["workdir"], settings["distributed"]
        limits = {name: settings.pop(name) for name in LIMITS}
        return {
            "settings": settings,
            "phases": list(self._phase_records()),
            **self.inputs.record(),
            **({"class_weights": self._class_weights} if self._class_weights else {}),
            "environment": {
                "limits": limits,
                "versions": {package: version(package) for package in _PACKAGES},
                "layout": dataclasses.asdict(self._model.like) if self._model.like else None,
                "devices": [device.device_kind for device in jax.devices()],
                "processes": distributed.count(),
            },
        }

    def _phase_records(self) -> Iterator[dict[str, Any]]:
        for plan in self.plans:
            phase = dataclasses.asdict(plan.phase)
            if plan.phase.lora is None:
                # As it was before there were factors: a run that was begun then goes on.
                phase = {name: each for name, each in phase.items() if not name.startswith("lora")}
            # What the settings leave open.
            settled: dict[str, Any] = {
                "weight_decay": plan.optimizer.weight_decay,
                "head_dropout": plan.head_dropout,
            }
            if plan.class_weights:
                settled["class_weights"] = dict(plan.class_weights)
            yield {**phase, **settled, "rules": plan.rules, "most_steps": plan.steps}


def _even(steps: int) -> int:
    """At most ``_STEPS_AT_ONCE``, so that the last of an epoch lack as few as can be."""
    # What is lacking is padded, and with several seeds on a device computed all the same.
    return math.ceil(steps / math.ceil(steps / _STEPS_AT_ONCE))
