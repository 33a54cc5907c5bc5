"""A phase of a run, as data: what trains, how fast, what counts, and when it ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args

from mtl_jax.config.extensions import refuse_schedule
from mtl_jax.config.lora import LORA_LEARNING_RATE, TARGETS, Lora, as_targets, lora_of, refuse_lora
from mtl_jax.config.optimizer import (
    EPOCHS,
    HEAD_EPOCHS,
    HEAD_LEARNING_RATE,
    HEAD_MIN_STEPS,
    MIN_STEPS,
    MOST_STEPS,
    Schedule,
)
from mtl_jax.config.scenario import Rules, scenario_text
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.converted import Converted, PathText, default, required
from mtl_jax.core.errors import UserError
from mtl_jax.core.type_checks import plain, refuse_types
from mtl_jax.freezing.scenarios import LORA, lora_rank

Metric = Literal["mean_macro_f1", "loss"]
Rates = Mapping[str, float] | Sequence[tuple[str, float]]
"""A number by name, or pairs of both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a recipe; fields that are None take the value of the run's settings.

        phases = [mtl.Phase(scenario="backbone_frozen", epochs=1),
                  mtl.Phase(scenario="top_2", epochs=3, patience=2)]

    A file with such a list is used as ``--recipe mine.py``.

    A phase is divided into epochs from its start. It is measured on validation at the end of each
    epoch, or of every so many, and at its own end.

    Attributes:
        scenario: A scenario as in ``TrainConfig``, or a list of ``(pattern, label)`` rules.
        epochs: Passes over the training texts, possibly fractional; the maximum for a phase that
            ends on a plateau. Without ``epochs`` and ``steps``, that of the settings.
        steps: The length in optimizer steps instead.
        min_steps: Minimum number of steps; few texts get more whole passes to reach it.
        patience: Ends the phase when this many measurements in a row have not improved on the
            best one of the phase by ``min_gain``.
        min_gain: See ``patience``; in units of ``metric``.
        metric: What measurements are judged by: the mean over tasks of macro-F1 (R2 for a
            regression), or of the losses, where lower is better.
        task_metric: The one task that ``metric`` is computed for, instead of the mean.
        keep_best: Whether the next phase starts from the best measurement of this phase,
            including its moments, instead of the last.
        requires_gain: Starts the phase only if the previous phase improved the best measurement
            by at least this much; otherwise the recipe ends.
        learning_rates: ``(label, peak)`` pairs, or a mapping. Labels are those of the scenario's
            rules, or a part of one, such as ``backbone/layer_5``; ``backbone`` and ``head``
            default to the settings.
        layer_decay: Factor from the learning rate of each layer to that of the layer below.
        schedule: How the learning rates change from step to step.
        warmup_fraction: Fraction of the schedule in which they rise.
        restart: Whether the schedule starts again; otherwise this phase continues that of the
            previous one.
        task_weights: ``(task, weight)`` pairs for the losses, or a mapping; tasks that are not
            named have the weights of the settings.
        drift_limit: How far, in nats, the predictions of a frozen head may drift before a
            warning; see ``head_drift``.
        hold_frozen_heads: Weight of a loss term that prevents this drift; 0 for none.
        lora_targets: For a scenario ``lora_r``, as in the settings. The factors are created in
            this phase, and continued by the next one if it has the same; before any other phase
            they are merged into their kernels.
        lora_alpha: For a scenario ``lora_r``, as in the settings.
        lora_dropout: For a scenario ``lora_r``, as in the settings.
    """

    scenario: Converted[PathText | Rules, str] = required()
    epochs: float | None = None
    steps: int | None = None
    min_steps: int | None = None
    patience: int | None = None
    min_gain: float = 0.0
    metric: Metric = "mean_macro_f1"
    task_metric: str | None = None
    keep_best: bool = False
    requires_gain: float | None = None
    learning_rates: Converted[Rates, tuple[tuple[str, float], ...]] = default(())
    layer_decay: float | None = None
    schedule: str | None = None
    warmup_fraction: float | None = None
    restart: bool = True
    task_weights: Converted[Rates | None, tuple[tuple[str, float], ...] | None] = default(None)
    drift_limit: float | None = None
    hold_frozen_heads: float | None = None
    lora_targets: Converted[str | Sequence[str] | None, tuple[str, ...] | None] = default(None)
    lora_alpha: float | None = None
    lora_dropout: float | None = None

    def __post_init__(self) -> None:
        refuse_types(self, Phase)
        object.__setattr__(self, "scenario", scenario_text(self.scenario))
        for name in ("learning_rates", "task_weights"):
            if (value := getattr(self, name)) is not None:
                pairs = value.items() if isinstance(value, Mapping) else value
                object.__setattr__(self, name, tuple((each, plain(x)) for each, x in pairs))
        object.__setattr__(self, "lora_targets", as_targets(self.lora_targets))
        if self.schedule is not None:
            refuse_schedule(self.schedule, get_args(Schedule))
        for other in ("epochs", "min_steps"):
            if getattr(self, other) is not None and self.steps is not None:
                raise UserError(f"{other} and steps are both given: leave one of them out")
        for name, least, strict in (
            ("epochs", 0, True),
            ("steps", 1, False),
            ("min_steps", 0, False),
            ("patience", 1, False),
            ("min_gain", 0, False),
            ("layer_decay", 0, True),
            ("drift_limit", 0, True),
            ("hold_frozen_heads", 0, False),
        ):
            value = getattr(self, name)
            if value is not None and not (value > least if strict else value >= least):
                words = "above" if strict else "at least"
                raise UserError(f"{name} {value} must be {words} {least}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{field.name} {value} must be finite")
        for name in ("epochs", "steps", "min_steps"):
            if (getattr(self, name) or 0) > MOST_STEPS:
                raise UserError(f"{name} {getattr(self, name)} must be at most {MOST_STEPS}")
        if self.warmup_fraction is not None and not 0 <= self.warmup_fraction <= 1:
            raise UserError(
                f"warmup_fraction {self.warmup_fraction} must be between 0 and 1: the schedule "
                "would end before its rates have risen"
            )
        refuse_lora("lora_{}", self.lora_targets, self.lora_alpha, self.lora_dropout)
        given = [name for name in _OF_LORA if getattr(self, name) is not None]
        if given and not self.trains_factors:
            raise UserError(
                f"{given[0]} is for a scenario lora_r, and that of this phase is {self.scenario}: "
                "leave it out"
            )
        for name in ("learning_rates", "task_weights"):
            pairs = getattr(self, name) or ()
            names = [each for each, _ in pairs]
            if twice := [each for each in names if names.count(each) > 1]:
                raise UserError(f"{name} names {twice[0]!r} twice: leave one of them out")
            if any(not 0 <= number < math.inf for _, number in pairs):
                raise UserError(f"{name} {dict(pairs)} must be finite and not negative")

    def completed(self, config: TrainConfig) -> Self:
        """The same with what the settings say in the place of every None that they fill.

        What depends on the scenario is left open where the settings do not state it, the length
        and the heads' learning rate: see ``settled``.

        Raises:
            UserError: It names a task that is not one of the run's.
        """
        weights = dict(self.task_weights or ())
        named = [*weights, *([self.task_metric] if self.task_metric is not None else [])]
        if strange := [task for task in named if task not in config.data.tasks]:
            raise UserError(
                f"there is no task {strange[0]!r}: use {' or '.join(config.data.tasks)}"
            )
        rates = {
            label: rate
            for label in ("head", "backbone")
            if (rate := getattr(config, f"{label}_learning_rate")) is not None
        }
        of_lora: dict[str, Any] = {}
        if rank := lora_rank(self.scenario):
            rate = config.lora_learning_rate
            rates[LORA] = LORA_LEARNING_RATE if rate is None else rate
            usual = {"lora_targets": TARGETS, "lora_alpha": float(rank), "lora_dropout": 0.0}
            of_lora = {
                name: default if (own := getattr(config, name)) is None else own
                for name, default in usual.items()
            }
        rates |= dict(self.learning_rates)
        filled: dict[str, Any] = {
            "learning_rates": tuple(rates.items()),
            "layer_decay": config.layer_decay,
            "schedule": config.schedule,
            "warmup_fraction": config.warmup_fraction,
            "task_weights": tuple((config.weights | weights).items()),
            "drift_limit": config.drift_limit,
            "hold_frozen_heads": config.hold_frozen_heads,
            **of_lora,
        }
        changes = {
            name: value
            for name, value in filled.items()
            if name in ("learning_rates", "task_weights") or getattr(self, name) is None
        }
        return dataclasses.replace(self, **changes)

    def settled(
        self,
        config: TrainConfig,
        *,
        heads_alone: bool,
        stated: bool,
        head_learning_rate: float = HEAD_LEARNING_RATE,
    ) -> Self:
        """A completed phase with its length, and the heads' learning rate.

        Args:
            config: The settings.
            heads_alone: Whether it trains heads on kept vectors, which takes little time.
            stated: Whether a file of phases states its length, to which nothing is added that
                is not asked for.
            head_learning_rate: That of the heads where nothing states it.
        """
        rates = {"head": head_learning_rate} | dict(self.learning_rates)
        with_rates = dataclasses.replace(self, learning_rates=tuple(rates.items()))
        if self.steps is not None:
            return with_rates
        default, floor = (HEAD_EPOCHS, HEAD_MIN_STEPS) if heads_alone else (EPOCHS, MIN_STEPS)
        asked = config.head_min_steps if heads_alone else config.min_steps
        if asked is None:
            asked = 0 if stated or config.epochs is not None else floor
        return dataclasses.replace(
            with_rates,
            epochs=float(config.epochs or default) if self.epochs is None else self.epochs,
            min_steps=asked if self.min_steps is None else self.min_steps,
        )

    @property
    def trains_factors(self) -> bool:
        """Whether its scenario is a ``lora_r``."""
        return lora_rank(self.scenario) is not None

    @property
    def lora(self) -> Lora | None:
        """The low-rank factors that it trains, of a completed phase; None for none."""
        rank = lora_rank(self.scenario)
        return lora_of(rank, self.lora_targets, self.lora_alpha, self.lora_dropout)

    @property
    def weights(self) -> dict[str, float]:
        """Per task its weight, of a completed phase."""
        if self.task_weights is None:
            raise ValueError("the phase is not completed")
        return dict(self.task_weights)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose losses count, of a completed phase; all where none does."""
        weights = self.weights
        return tuple(task for task, weight in weights.items() if weight > 0) or tuple(weights)


# The labels that settings give a rate, and what else they say of factors.
_RATED = ("head", "backbone", LORA)
_OF_LORA = ("lora_targets", "lora_alpha", "lora_dropout")


def untaken(config: TrainConfig, phases: Sequence[Phase]) -> list[str]:
    """The settings, other than their defaults, that none of some completed phases goes by."""
    own = ("layer_decay", "schedule", "warmup_fraction", "drift_limit", "hold_frozen_heads")
    own += _OF_LORA
    taken = [
        {name: getattr(phase, name) for name in own}
        | {f"{label}_learning_rate": dict(phase.learning_rates).get(label) for label in _RATED}
        for phase in phases
    ]
    given = {name: getattr(config, name) for name in taken[0]}
    unused = [
        name
        for name, value in given.items()
        if value != getattr(TrainConfig, name) and all(value != each[name] for each in taken)
    ]
    for task, weight in config.weights.items():
        if weight != 1 and all(weight != phase.weights[task] for phase in phases):
            return [*unused, "task_weights"]
    return unused


def phases_from(objects: Sequence[Mapping[str, Any]], origin: str) -> tuple[Phase, ...]:
    """Phases from JSON: objects with the fields of ``Phase``, rates as an object by label.

    Raises:
        UserError: Something else is there; ``origin`` names the file.
    """
    if not isinstance(objects, list) or not objects:
        raise UserError(
            f'{origin} is not a list of phases: write one such as [{{"scenario": '
            '"backbone_frozen", "epochs": 1}, {"scenario": "none_frozen", "epochs": 2}]'
        )
    return tuple(_phase(fields, f"{origin}: phase {i}") for i, fields in enumerate(objects, 1))


def _phase(fields: Any, origin: str) -> Phase:
    names = [field.name for field in dataclasses.fields(Phase)]
    if not isinstance(fields, dict) or "scenario" not in fields:
        raise UserError(
            f"{origin} is not an object with a scenario: {', '.join(names)} are its fields"
        )
    unknown = [name for name in fields if name not in names]
    if unknown:
        raise UserError(f"{origin} has no field {unknown[0]!r}: use {', '.join(names)}")
    fields = dict(fields)
    if ":" in str(fields.get("schedule")):
        raise UserError(
            f"{origin}: schedule {fields['schedule']!r} names code, and a file of phases imports "
            f"none: use {', '.join(get_args(Schedule))}, or --schedule"
        )
    for name, key in (("learning_rates", "label"), ("task_weights", "task")):
        if not isinstance(fields.get(name, {}), dict):
            raise UserError(f"{origin}: {name} is not an object: write one of numbers by {key}")
    try:
        return Phase(**fields)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


def boundaries(phases: Sequence[Phase], steps_per_epoch: Sequence[int]) -> list[int]:
    """Steps of each completed phase at most.

    Phases in epochs are rounded together, so that three thirds of an epoch are one epoch; each
    has at least one step, or whole epochs until there are its ``min_steps``.

    Args:
        phases: All phases of a run.
        steps_per_epoch: Of each; they differ where the active tasks do.
    """
    passed, steps = 0.0, []
    for phase, per_epoch in zip(phases, steps_per_epoch, strict=True):
        if phase.steps is not None:
            passed += phase.steps / per_epoch
            steps.append(phase.steps)
            continue
        until = passed + (phase.epochs or 0.0)
        # A sum such as 3 x 1/3 may be a little off, and a half be rounded either way.
        first, last = (round(round(epochs * per_epoch, 6)) for epochs in (passed, until))
        if last - first < (phase.min_steps or 0):
            passes = math.ceil((phase.min_steps or 0) / per_epoch)
            passed += passes
            steps.append(passes * per_epoch)
            continue
        steps.append(max(last - first, 1))
        passed = until
    return steps
