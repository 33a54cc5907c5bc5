"""What is searched for an arm: the rates of its optimizer groups, and its length."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.config.lora import LORA_LEARNING_RATE
from mtl_jax.config.optimizer import (
    EPOCHS,
    HEAD_EPOCHS,
    HEAD_LEARNING_RATE,
    HEAD_MIN_STEPS,
    MIN_STEPS,
)
from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.phase_run import PhaseRun

# By what a rate is divided and multiplied at most. A backbone of which little trains, such as
# biases alone, takes rates far above those of the whole.
_RANGES = {"head": (10.0, 10.0), "backbone": (10.0, 30.0), "lora": (10.0, 10.0)}
_DEFAULTS = {"head": HEAD_LEARNING_RATE, "lora": LORA_LEARNING_RATE}
LENGTHS = (1.0, 0.5, 2.0)
"""What the number of passes, and of steps at least, is multiplied by."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """A learning rate that is searched, on a logarithmic scale."""

    field: str
    """of ``TrainConfig``"""
    default: float
    low: float
    high: float

    def spread(self, count: int) -> tuple[float, ...]:
        """So many values over the range, evenly in their logarithm; of one the default."""
        if count == 1:
            return (self.default,)
        return tuple(map(rounded, np.geomspace(self.low, self.high, count).tolist()))


@dataclasses.dataclass(frozen=True)
class Space:
    """What is searched for one arm.

    Attributes:
        rates: Of the optimizer groups that any phase of it trains.
        lengths: The settings of each length, by what the default is multiplied by.
        heads_alone: Whether nothing but heads on kept vectors trains, all of them.
    """

    rates: tuple[Rate, ...]
    lengths: Mapping[float, Mapping[str, int]]
    heads_alone: bool


def rounded(rate: float) -> float:
    """A rate of two digits, which say enough of it."""
    return float(f"{rate:.2g}")


def space_of(run: PhaseRun) -> Space:
    """What is searched for an arm: nothing where nothing trains.

    A rate that a recipe states itself is none of the settings', and is left as it is.
    """
    config, plans = run.config, run.plans
    groups = {group.split("/")[0] for plan in plans for group in plan.partition.groups}
    rates = []
    for group, (below, above) in _RANGES.items():
        field = f"{group}_learning_rate"
        default = getattr(config, field)
        default = _DEFAULTS[group] if default is None else default
        if group not in groups or not default:
            continue
        other = PhaseRun(dataclasses.replace(config, **{field: default * 1.5}), run.inputs)
        if any(a.optimizer != b.optimizer for a, b in zip(plans, other.plans, strict=True)):
            rates.append(Rate(field, default, rounded(default / below), rounded(default * above)))
    alone = len(plans) == 1 and run.partition.trains_heads_alone and config.prefix_cache
    every = alone and all(run.phase.weights.values()) and bool(run.plans[0].trained_heads)
    if not rates:
        return Space((), {}, heads_alone=False)
    lengths: dict[float, Mapping[str, int]] = {}
    for times in LENGTHS:
        changes = _lengthened(config, times, heads_alone=alone)
        if changes not in lengths.values():
            lengths[times] = changes
    return Space(tuple(rates), lengths, heads_alone=every)


def _lengthened(config: TrainConfig, times: float, *, heads_alone: bool) -> dict[str, Any]:
    """The settings of a run that is so many times as long; of a recipe, in all its phases."""
    stated = config.epochs is not None
    passes = config.epochs or (HEAD_EPOCHS if heads_alone else EPOCHS)

    def least(asked: int | None, default: int) -> int:
        return round(times * ((0 if stated else default) if asked is None else asked))

    return {
        # Some half a pass more is no shorter a run.
        "epochs": max(math.floor(times * passes + 0.5), 1),
        "min_steps": least(config.min_steps, MIN_STEPS),
        "head_min_steps": least(config.head_min_steps, HEAD_MIN_STEPS),
    }
