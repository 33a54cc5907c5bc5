"""The phases of a run laid out on its data and its model, before the first step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.config.checkpoint import MEASUREMENTS
from mtl_jax.config.extensions import paths_by_name
from mtl_jax.config.optimizer import (
    EPOCHS,
    HEAD_LEARNING_RATE,
    MOST_STEPS,
    WEIGHT_DECAY,
    head_weight_decay,
)
from mtl_jax.config.tasks import Task
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError, no_trained_head
from mtl_jax.core.imported import import_function
from mtl_jax.data.kinds import has_label
from mtl_jax.data.packing.plan import PackingPlan
from mtl_jax.freezing.partition import Params, Partition, longest_prefix
from mtl_jax.freezing.phase import Phase, boundaries
from mtl_jax.freezing.recipes import RecipeContext, phases_of
from mtl_jax.freezing.rules import Rule
from mtl_jax.freezing.scenarios import FROZEN, LORA, scenario_rules
from mtl_jax.runs.progress import chained_steps
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.optimizer import OptimizerConfig
from mtl_jax.training.schedules import layer_rates, refuse_no_schedule

# Of a phase of fewer steps a sweep would take longer to compile than it is worth.
_SWEPT_STEPS = 100


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """One phase.

    Attributes:
        phase: As the recipe has it, completed by the settings.
        rules: Of its scenario.
        partition: What these make of the parameters; by layer where the rates are.
        batches: Where every training text goes in an epoch.
        steps: Its steps at most; 0 where nothing trains.
        optimizer: What its updates depend on.
        texts: Names the set of its training texts.
        learned: The tasks whose heads an earlier phase has trained.
        measure_every: Epochs between two measurements on validation.
        rate_is_open: Whether a sweep may choose the heads' learning rate: it trains all heads on
            vectors of the pre-trained backbone, long enough, and nothing states their rate.
        head_dropout: Of the vectors that the heads read.
        class_weights: ``(task, weights)`` of those whose classes are imbalanced, by which heads
            alone are trained where nothing states others.
    """

    phase: Phase
    rules: tuple[Rule, ...]
    partition: Partition
    batches: PackingPlan
    steps: int
    optimizer: OptimizerConfig
    texts: str
    learned: frozenset[str]
    measure_every: int
    rate_is_open: bool
    head_dropout: float
    class_weights: tuple[tuple[str, tuple[float, ...]], ...] = ()

    @property
    def trained_heads(self) -> frozenset[str]:
        """The tasks whose heads train."""
        return _heads(self.partition)

    @property
    def watched(self) -> tuple[str, ...]:
        """The tasks whose frozen head may be left behind by a backbone that trains."""
        if self.partition.backbone_frozen:
            return ()
        return tuple(task for task in self.phase.weights if task not in self.trained_heads)

    @property
    def guarded(self) -> tuple[str, ...]:
        """Those of them that have something to lose: a head that never trained has not."""
        return tuple(task for task in self.watched if task in self.learned)

    @property
    def held(self) -> tuple[str, ...]:
        """Those of these whose predictions the loss holds."""
        return self.guarded if self.phase.hold_frozen_heads else ()

    @property
    def may_end_early(self) -> bool:
        """Whether it may take fewer steps, or not begin."""
        return self.phase.patience is not None or self.phase.requires_gain is not None

    @property
    def keeps_end(self) -> bool:
        """Whether what it ends with is kept, and not the best of its measurements.

        Heads alone are a convex problem, and their rate falls to nothing: of such epochs a
        validation split would choose one by chance.
        """
        phase = self.phase
        decays = phase.patience is None and phase.schedule in ("linear", "slanted_triangular")
        return self.partition.trains_heads_alone and decays

    def epochs(self, steps: int) -> float:
        """Passes over the training texts that so many steps are."""
        return steps / self.batches.steps


def plan_phases(
    config: TrainConfig,
    inputs: Inputs,
    params: Params,
    devices: int,
    head_learning_rate: float = HEAD_LEARNING_RATE,
) -> tuple[PhasePlan, ...]:
    """Lays out the phases of a run.

    Args:
        config: The settings; the seed makes no difference.
        inputs: The data and the backbone.
        params: The parameters, of which only the paths are used.
        devices: Over how many a batch is spread.
        head_learning_rate: That of the first phase's heads where nothing states it.

    Raises:
        UserError: A phase can't be; it is named.
    """
    labels = inputs.split("train").texts.labels
    context = RecipeContext(
        num_layers=inputs.bert.num_hidden_layers,
        epochs=config.epochs or EPOCHS,
        labels={task: int(has_label(labels[task]).sum()) for task in config.data.tasks},
        thinned=tuple(config.data.label_fractions),
        backbone_learning_rate=config.backbone_learning_rate,
    )
    completed = phases_of(config, context)
    names = [""] if config.recipe is None else _names(config.recipe, completed)
    of_file = (config.recipe or "").endswith((".json", ".py"))
    phases, rules, partitions = [], [], []
    for phase, name in zip(completed, names, strict=True):
        try:
            rules.append(scenario_rules(phase.scenario, context.num_layers, context.tasks))
            partitions.append(_partition(phase, params, rules[-1]))
        except UserError as error:
            raise UserError(f"{name}{error}") from error
        heads_alone = config.prefix_cache and partitions[-1].trains_heads_alone
        stated = of_file and phase.epochs is not None
        rate = HEAD_LEARNING_RATE if phases else head_learning_rate
        phases.append(
            phase.settled(config, heads_alone=heads_alone, stated=stated, head_learning_rate=rate)
        )
        if name and (reason := _idle(phases[-1], partitions[-1])):
            raise UserError(f"{name}scenario {phase.scenario!r} changes nothing: {reason}")
    batches, texts, decays, weights = [], [], [], []
    # Elsewhere the heads that come of it would be trained further, by another loss.
    evens = all(partition.trains_heads_alone for partition in partitions)
    for phase, name in zip(phases, names, strict=True):
        try:
            batches.append(inputs.plan(config.batch_size, devices, phase.tasks))
            training = inputs.training(phase.tasks).texts
        except UserError as error:
            raise UserError(f"{name}{error}") from error
        texts.append(training.tokens.digest)
        decays.append(_weight_decay(config, partitions[len(decays)], len(training)))
        weights.append(_class_weights(config, inputs.tasks, training.labels) if evens else ())
    bounds = boundaries(phases, [each.steps for each in batches])
    bounds = [
        steps if partition.groups else 0
        for steps, partition in zip(bounds, partitions, strict=True)
    ]
    if sum(bounds) > MOST_STEPS:
        raise UserError(
            f"{config.name} would take {sum(bounds)} steps, and {MOST_STEPS} can be counted: lower "
            "--epochs, --min-steps and --head-min-steps, or what its phases ask for"
        )
    plans: list[PhasePlan] = []
    learned: frozenset[str] = frozenset()
    for i, phase in enumerate(phases):
        total = chained_steps(phases, bounds, i)
        optimizer = _optimizer(config, phase, context.num_layers, total, decays[i])
        laid_out = rules[i], partitions[i], batches[i], bounds[i], optimizer, texts[i], learned
        between = math.ceil(bounds[i] / batches[i].steps / MEASUREMENTS) or 1
        rate_is_open = (
            i == 0
            and config.prefix_cache
            and bounds[0] >= _SWEPT_STEPS
            and _rate_is_open(completed[0], partitions[0])
        )
        dropout = config.head_dropout
        if dropout is None:
            alone = partitions[i].trains_heads_alone
            dropout = inputs.bert.trained_head_dropout(heads_alone=alone)
        measured = config.measure_every or between
        plans.append(PhasePlan(phase, *laid_out, measured, rate_is_open, dropout, weights[i]))
        learned |= _heads(partitions[i])
    _refuse_repeats(plans, names)
    for plan, name in zip(plans, names, strict=True):
        # What the settings ask for is meant for any phase that can have it.
        weight = plan.phase.hold_frozen_heads
        if weight not in (0, config.hold_frozen_heads) and not plan.guarded:
            raise UserError(
                f"{name}hold_frozen_heads {weight:g} is for a head that an earlier phase has "
                "trained, and it freezes no such head while the backbone trains: leave it out"
            )
    if config.hold_frozen_heads and not any(plan.guarded for plan in plans):
        why = f"no phase of {config.name} freezes such a head while the backbone trains"
        raise no_trained_head(config.hold_frozen_heads, f"{why}: use another recipe")
    return tuple(plans)


def _rate_is_open(phase: Phase, partition: Partition) -> bool:
    """Of the first phase as completed; see ``PhasePlan``."""
    every_head = _heads(partition) == phase.weights.keys() and all(phase.weights.values())
    return partition.trains_heads_alone and every_head and "head" not in dict(phase.learning_rates)


def _heads(partition: Partition) -> frozenset[str]:
    """The tasks whose heads train."""
    trained = {path.split("/")[0] for path, label in partition.labels if label != FROZEN}
    return frozenset(trained - {"backbone"})


def _refuse_repeats(plans: Sequence[PhasePlan], names: Sequence[str]) -> None:
    """Refuses phases that do what the one before does, and warm-ups as long as their phase."""
    for number, plan in enumerate(plans, start=1):
        rise, total = plan.optimizer.warmup_steps, plan.optimizer.total_steps
        if names[number - 1] and rise >= total > 1 and plan.phase.schedule != "constant":
            raise UserError(
                f"{names[number - 1]}its schedule rises for {rise} of {total} steps, and ends "
                "before it began to fall: lower warmup_fraction"
            )
        if number > 1 and _training_of(plans[number - 2]) == _training_of(plan):
            raise UserError(
                f"{names[number - 1]}changes nothing of phase {number - 1}: give it another "
                "scenario, learning rates or task weights, or make one of the two"
            )


def _training_of(plan: PhasePlan) -> tuple[Any, ...]:
    """What a phase does while it lasts, whatever ends it."""
    phase = plan.phase
    rates = {group: plan.optimizer.rate(group) for group in plan.partition.groups}
    # Labels by stage and their rates may say what those of the whole backbone do.
    trained = {path: rates.get(label) for path, label in plan.partition.labels}
    held = phase.drift_limit, phase.hold_frozen_heads
    how = phase.task_weights, phase.schedule, phase.warmup_fraction
    return plan.partition.lora, trained, how, held


def _names(recipe: str, phases: Sequence[Phase]) -> list[str]:
    return [f"recipe {recipe}: phase {number}: " for number in range(1, len(phases) + 1)]


def _partition(phase: Phase, params: Params, rules: Sequence[Rule]) -> Partition:
    partition = Partition.from_rules(params, rules, phase.lora, phase.scenario)
    finer = {
        label for label, _ in phase.learning_rates if label.startswith(("backbone/", f"{LORA}/"))
    }
    if phase.layer_decay != 1 or finer - set(partition.groups):
        partition = partition.by_stage()
    for label, _ in phase.learning_rates:
        # The settings give a rate for both of these, whether there is use for it or not.
        used = (group == label or group.startswith(f"{label}/") for group in partition.groups)
        if label not in ("head", "backbone") and not any(used):
            raise UserError(
                f"learning_rates names {label!r}, which is not a label of anything it trains: use "
                f"{', '.join(partition.groups)}"
            )
    return partition


def _idle(phase: Phase, partition: Partition) -> str | None:
    """Why a phase of a recipe leaves everything as it is."""
    if not partition.groups:
        return "it trains no parameter; leave the phase out"
    if not any(phase.weights.values()):
        return "all task weights are 0; raise one of them"
    rates = dict(phase.learning_rates)
    if not any(rates[longest_prefix(group, rates)] for group in partition.groups):
        return "all its learning rates are 0; raise one of them"
    return None


def _schedule(name: str) -> Any:
    if ":" not in name:
        return name
    make = import_function(name, "--schedule")
    refuse_no_schedule(make, f"--schedule {name}")
    return make


def _weight_decay(config: TrainConfig, partition: Partition, texts: int) -> float:
    if config.weight_decay is not None:
        return config.weight_decay
    return head_weight_decay(texts) if partition.trains_heads_alone else WEIGHT_DECAY


def _class_weights(
    config: TrainConfig, tasks: Mapping[str, Task], labels: Mapping[str, np.ndarray]
) -> tuple[tuple[str, tuple[float, ...]], ...]:
    if not config.evens_classes:
        return ()
    stated = {*config.weights_of_classes}
    stated |= {*paths_by_name("--loss", config.loss, tuple(tasks), every=True)}
    found = [
        (name, KINDS[task.kind].evened(labels[name], len(task.classes)))
        for name, task in tasks.items()
        if name not in stated
    ]
    return tuple((name, tuple(map(float, own))) for name, own in found if own is not None)


def _optimizer(
    config: TrainConfig, phase: Phase, num_layers: int, total_steps: int, weight_decay: float
) -> OptimizerConfig:
    rates = phase.learning_rates
    if phase.layer_decay not in (None, 1):
        rates = layer_rates(rates, phase.layer_decay, num_layers)
    return OptimizerConfig(
        learning_rates=rates,
        total_steps=total_steps,
        warmup_steps=round((phase.warmup_fraction or 0.0) * total_steps),
        weight_decay=weight_decay,
        clip_norm=config.clip_norm,
        schedule=_schedule(phase.schedule or "linear"),
        ema=config.ema,
    )


def parted(plans: Sequence[PhasePlan]) -> bool:
    """Whether a phase partitions a part of the backbone that has been trained before it.

    That part differs between the seeds of a run from there on.
    """
    trained: set[str] = set()
    for index, plan in enumerate(plans):
        frozen = {path for path, label in plan.partition.labels if label == FROZEN}
        if any(path.startswith("backbone/") for path in frozen & trained):
            return True
        paths = {path for path, _ in plan.partition.labels} - frozen
        if plan.partition.lora and not keeps_factors(plans, index + 1):
            # Merged into their kernels.
            paths = {path.replace("/lora_a", "/kernel") for path in paths}
        trained |= paths
    return False


def keeps_factors(plans: Sequence[PhasePlan], index: int) -> bool:
    """Whether a phase goes on with the low-rank factors of the one before it."""
    if not 0 < index < len(plans):
        return False
    before, own = (plans[i].partition.lora for i in (index - 1, index))
    return own is not None and own.same_factors(before)


def on_the_way(plans: Sequence[PhasePlan], phase: int, num_layers: int) -> dict[int, int]:
    """The later phases whose frozen bottom is a part of that of ``phase``, with its depth.

    Nothing of it is trained in between, so that its activations can be kept when those of
    ``phase`` are computed, which they are on the way to.
    """
    lowest = plans[phase].partition.depth(num_layers)
    found = {}
    for index in range(phase + 1, len(plans)):
        depth = plans[index].partition.depth(num_layers)
        if depth <= lowest:
            found[index] = depth
        lowest = min(lowest, depth)
    return found
