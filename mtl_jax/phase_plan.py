"""The phases of a run laid out on its data and its model, before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mtl_jax.config import TASKS, TrainConfig
from mtl_jax.course import chained_steps
from mtl_jax.data.packing import TrainPlan
from mtl_jax.errors import UserError
from mtl_jax.freeze import Freeze, Params
from mtl_jax.inputs import Inputs
from mtl_jax.optim import OptimizerConfig, layer_rates
from mtl_jax.phases import Phase, boundaries
from mtl_jax.recipes import Setting, phases_of
from mtl_jax.rules import Rule
from mtl_jax.scenarios import FROZEN, scenario_rules


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """One phase.

    Attributes:
        phase: As the recipe has it, completed by the settings.
        rules: Of its scenario.
        freeze: What these make of the parameters; by layer where the rates are.
        batches: Where every training text goes in an epoch.
        steps: Its steps at most; 0 where nothing trains.
        optimizer: What its updates depend on.
    """

    phase: Phase
    rules: tuple[Rule, ...]
    freeze: Freeze
    batches: TrainPlan
    steps: int
    optimizer: OptimizerConfig

    @property
    def watched(self) -> tuple[str, ...]:
        """The tasks whose frozen head may be left behind by a backbone that trains."""
        if self.freeze.backbone_frozen:
            return ()
        trained = {path.split("/")[0] for path, label in self.freeze.labels if label != FROZEN}
        return tuple(task for task in TASKS if task not in trained)

    @property
    def held(self) -> tuple[str, ...]:
        """Those of them whose predictions the loss may have to hold."""
        return self.watched if self.phase.on_drift == "distill" else ()

    def epochs(self, steps: int) -> float:
        """Passes over the training texts that so many steps are."""
        return steps / self.batches.steps


def plan_phases(
    config: TrainConfig, inputs: Inputs, params: Params, devices: int
) -> tuple[PhasePlan, ...]:
    """Lays out the phases of a run.

    Args:
        config: The settings; the seed makes no difference.
        inputs: The data and the backbone.
        params: The parameters, of which only the paths are used.
        devices: Over how many a batch is spread.

    Raises:
        UserError: A phase can't be; it is named.
    """
    labels = inputs.split("train").texts.labels
    setting = Setting(
        num_layers=inputs.bert.num_hidden_layers,
        epochs=config.epochs,
        labels={task: int((labels[task] >= 0).sum()) for task in TASKS},
        thinned=tuple(config.data.label_fractions),
    )
    phases = phases_of(config, setting)
    names = [""] if config.recipe is None else _names(config.recipe, phases)
    rules, freezes = [], []
    for phase, name in zip(phases, names, strict=True):
        try:
            rules.append(scenario_rules(phase.scenario, setting.num_layers))
            freezes.append(_freeze(phase, params, rules[-1]))
        except UserError as error:
            raise UserError(f"{name}{error}") from error
        if name and (reason := _idle(phase, freezes[-1])):
            raise UserError(f"{name}scenario {phase.scenario!r} changes nothing: {reason}")
    batches = [inputs.plan(config.batch_size, devices, phase.tasks) for phase in phases]
    bounds = boundaries(phases, [each.steps for each in batches])
    bounds = [steps if freeze.groups else 0 for steps, freeze in zip(bounds, freezes, strict=True)]
    plans = []
    for i, phase in enumerate(phases):
        total = chained_steps(phases, bounds, i)
        optimizer = _optimizer(config, phase, setting.num_layers, total)
        plans.append(PhasePlan(phase, rules[i], freezes[i], batches[i], bounds[i], optimizer))
    return tuple(plans)


def _names(recipe: str, phases: Sequence[Phase]) -> list[str]:
    return [f"recipe {recipe}: phase {number}: " for number in range(1, len(phases) + 1)]


def _freeze(phase: Phase, params: Params, rules: Sequence[Rule]) -> Freeze:
    freeze = Freeze.from_rules(params, rules)
    finer = {label for label, _ in phase.learning_rates if label.startswith("backbone/")}
    if phase.layer_decay != 1 or finer - set(freeze.groups):
        freeze = freeze.by_stage()
    if unknown := [label for label, _ in phase.learning_rates if not _is_part(label, params)]:
        raise UserError(
            f"learning_rates names {unknown[0]!r}, which is no part of the model: use head, "
            "backbone, or a stage such as backbone/layer_0"
        )
    return freeze


def _is_part(label: str, params: Params) -> bool:
    group, _, stage = label.partition("/")
    return group == "head" or (group == "backbone" and (not stage or stage in params[group]))


def _idle(phase: Phase, freeze: Freeze) -> str | None:
    """Why a phase of a recipe leaves everything as it is."""
    if not freeze.groups:
        return "it trains no parameter; leave the phase out"
    if not any(phase.weights.values()):
        return "all task weights are 0; raise one of them"
    rates = dict(phase.learning_rates)
    if not any(rates.get(group, rates[group.split("/")[0]]) for group in freeze.groups):
        return "all its learning rates are 0; raise one of them"
    return None


def _optimizer(
    config: TrainConfig, phase: Phase, num_layers: int, total_steps: int
) -> OptimizerConfig:
    rates = phase.learning_rates
    if phase.layer_decay not in (None, 1):
        rates = layer_rates(rates, phase.layer_decay, num_layers)
    return OptimizerConfig(
        learning_rates=rates,
        total_steps=total_steps,
        warmup_steps=round((phase.warmup_fraction or 0.0) * total_steps),
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        schedule=phase.schedule or "linear",
    )


def parted(plans: Sequence[PhasePlan]) -> bool:
    """Whether a phase freezes a part of the backbone that has been trained before it.

    That part differs between the seeds of a run from there on.
    """
    trained: set[str] = set()
    for plan in plans:
        frozen = {path for path, label in plan.freeze.labels if label == FROZEN}
        if any(path.startswith("backbone/") for path in frozen & trained):
            return True
        trained |= {path for path, _ in plan.freeze.labels} - frozen
    return False


def on_the_way(plans: Sequence[PhasePlan], phase: int, num_layers: int) -> dict[int, int]:
    """The later phases whose frozen bottom is a part of that of ``phase``, with its depth.

    Nothing of it is trained in between, so that its activations can be kept when those of
    ``phase`` are computed, which they are on the way to.
    """
    lowest = plans[phase].freeze.depth(num_layers)
    found = {}
    for index in range(phase + 1, len(plans)):
        depth = plans[index].freeze.depth(num_layers)
        if depth <= lowest:
            found[index] = depth
        lowest = min(lowest, depth)
    return found
