"""The rows of the benchmark as data: what each measures, and how that is judged.

Useful FLOPs are those of matrix products on real tokens: a forward pass of L layers costs
``2 n (4 h^2 + 2 h i) L`` in products with weights (n tokens, hidden size h, intermediate
size i) and ``4 h L sum(l^2)`` in attention (over texts of l tokens); a training step of a
model without frozen parts costs three times that (Kaplan et al. 2020, arXiv:2001.08361).
Padding, recomputation, embeddings and heads do not count.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.document import Cell
from experiments.wording import MISSING, byte_size, count_of, fixed
from mtl_jax.errors import UserError

Sample = Mapping[str, Any]
"""What one measurement gave; see ``benchmark.MEASUREMENTS``."""
Samples = Mapping[str, Sequence[Sample]]
"""Per label of a case's jobs, the samples of its repeats."""

OURS, THEIRS = "mtl_jax", "PyTorch"


@dataclasses.dataclass(frozen=True)
class Job:
    """One thing to measure. Cases that share a job share its samples.

    Attributes:
        measurement: A key of ``benchmark.MEASUREMENTS``.
        scenario: What is frozen; the name of a recipe where ``recipe`` says so.
        sentences: Training sentences, before ``--sentences-scale``.
        epochs: Passes over them.
        variants: Heads, or seeds, that are trained at once.
        fresh: Whether it has a process of its own, so that its peak memory can be told.
        recipe: Whether ``scenario`` is a recipe.
    """

    measurement: str
    scenario: str = "backbone_frozen"
    sentences: int = 64
    epochs: int = 1
    variants: int = 1
    fresh: bool = False
    recipe: bool = False


@dataclasses.dataclass(frozen=True)
class Goal:
    """The range that a value should lie in."""

    low: float = 0.0
    high: float = math.inf

    def reached(self, value: float) -> bool:
        """Whether ``value`` is in the range, its ends included."""
        return self.low <= value <= self.high

    def text(self, unit: str) -> str:
        """The range in words."""
        if math.isinf(self.high):
            return f"at least {self.low:g}{unit}"
        return f"{f'{self.low:g} to' if self.low else 'at most'} {self.high:g}{unit}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A line of the table.

    Attributes:
        name: The row, short enough for a terminal.
        about: What was measured there.
        measured: It, with its spread.
        against: What it is compared with.
        value: The ratio or share that the goal is about.
        unit: What ``value`` is written with.
        goal: None where the line is for comparison only.
    """

    name: str
    about: str
    measured: Cell
    against: Cell
    value: float
    unit: str = "×"
    goal: Goal | None = None

    @property
    def verdict(self) -> str:
        """``reached``, ``missed``, or a dash."""
        if self.goal is None:
            return MISSING
        return "reached" if self.goal.reached(self.value) else "missed"


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the benchmark.

    Attributes:
        jobs: ``(label, job)``, measured in turn, again and again.
        judge: Samples to outcomes.
        repeated: Whether the clock decides; what is only counted is run once.
        optional: Labels that ``judge`` can do without.
        platform: Where its goal holds, as jax names it; None for everywhere.
    """

    jobs: tuple[tuple[str, Job], ...]
    judge: Callable[[Samples], list[Outcome]]
    repeated: bool = True
    optional: tuple[str, ...] = ()
    platform: str | None = None


def forward_flops(lengths: np.ndarray, hidden: int, intermediate: int, layers: int) -> float:
    """Useful FLOPs of one pass over texts of int [n] ``lengths``; see the module."""
    lengths = lengths.astype(np.float64)
    weights = 2 * lengths.sum() * (4 * hidden**2 + 2 * hidden * intermediate)
    return float(layers * (weights + 4 * hidden * (lengths**2).sum()))


def _values(samples: Sequence[Sample], key: str, scale: float = 1.0) -> list[float]:
    return [scale * sample[key] for sample in samples]


def per_sentence(samples: Sequence[Sample]) -> list[float]:
    """Milliseconds of training steps per sentence."""
    return [1e3 * s["train_seconds"] / (s["epochs"] * s["train_examples"]) for s in samples]


def spread(values: Sequence[float], unit: str) -> Cell:
    """The median, and beside it ``(smallest–largest)``."""
    middle = statistics.median(values)
    digits = 0 if middle >= 1000 else 1 if middle >= 100 else 2 if middle >= 1 else 3
    low, high = (fixed(value, digits) for value in (min(values), max(values)))
    return Cell(f"{fixed(middle, digits)} {unit}", f"({low}–{high})")


def title(sample: Sample) -> str:
    """Scenario, epochs and sentences of a training, and its seeds where they are several."""
    seeds = sample.get("seeds", 1)
    return (
        f"`{sample['scenario']}`, {count_of(sample['epochs'], 'epoch')} of "
        f"{count_of(sample['train_examples'], 'sentence')}"
        f"{f', {seeds} seeds at once' if seeds > 1 else ''}"
    )


def _faster(goal: Goal, *, steps_only: bool = False) -> Callable[[Samples], list[Outcome]]:
    """Our speed as a multiple of PyTorch's, over the whole run or its training steps."""

    def judge(samples: Samples) -> list[Outcome]:
        ours, theirs = (
            per_sentence(samples[side]) if steps_only else _values(samples[side], "seconds")
            for side in (OURS, THEIRS)
        )
        about = f"{title(samples[OURS][0])}: {'training steps' if steps_only else 'whole run'}"
        unit = "ms a sentence" if steps_only else "s"
        cells = spread(ours, unit), spread(theirs, unit)
        speed_up = statistics.median(theirs) / statistics.median(ours)
        return [Outcome(samples[OURS][0]["scenario"], about, *cells, speed_up, goal=goal)]

    return judge


def _times_one(
    name: str,
    about: str,
    goal: Goal,
    key: str = "seconds",
    labels: tuple[str, str] = ("many", "one"),
) -> Callable[[Samples], list[Outcome]]:
    """What many at once take, or the first of two, as a multiple of what the other takes."""

    def judge(samples: Samples) -> list[Outcome]:
        many, one = (_values(samples[label], key) for label in labels)
        times = statistics.median(many) / statistics.median(one)
        return [Outcome(name, about, spread(many, "s"), spread(one, "s"), times, goal=goal)]

    return judge


def _share_of_peak(goal: Goal) -> Callable[[Samples], list[Outcome]]:
    """Useful FLOPs a second in training steps, as a share of the fastest matrix product's."""

    def judge(samples: Samples) -> list[Outcome]:
        peak = _values(samples["peak"], "flops_per_second", 1e-9)
        outcomes = []
        for side in (side for side in (OURS, THEIRS) if side in samples):
            rates = [
                3e-9 * s["epochs"] * s["forward_flops"] / s["train_seconds"] for s in samples[side]
            ]
            share = 100 * statistics.median(rates) / statistics.median(peak)
            about = f"{title(samples[side][0])}: useful FLOPs of the training steps"
            cells = spread(rates, "GFLOP/s"), spread(peak, "GFLOP/s")
            judged = goal if side == OURS else None
            name = f"share of peak, {side}"
            outcomes.append(Outcome(name, about, *cells, share, " %", judged))
        return outcomes

    return judge


def _state(samples: Samples) -> list[Outcome]:
    names = ("backbone_frozen", "none_frozen")
    some, all_ = (samples[name][0]["optimizer_state_bytes"] for name in names)
    cells = "`backbone_frozen` against `none_frozen`", Cell(byte_size(some)), Cell(byte_size(all_))
    return [Outcome("optimizer state", *cells, 100 * some / all_, " %", Goal(high=0.1))]


def _growth(samples: Samples) -> list[Outcome]:
    outcomes = []
    for scenario in ("backbone_frozen", "none_frozen"):
        large, small = (samples[f"{scenario}, {size}"] for size in ("large", "small"))
        counts = [part[0]["train_examples"] for part in (large, small)]
        if counts[0] < 9 * counts[1]:
            raise UserError(
                f"{counts[0]:,} training sentences are not ten times {counts[1]:,}: use more "
                "data, or a smaller --sentences-scale"
            )
        many, few = (per_sentence(part) for part in (large, small))
        times = statistics.median(many) / statistics.median(few)
        about = (
            f"{counts[0]:,} sentences against {counts[1]:,}: training steps; peak memory "
            f"{' against '.join(byte_size(max(_values(p, 'peak_bytes'))) for p in (large, small))}"
        )
        cells = spread(many, "ms a sentence"), spread(few, "ms a sentence")
        outcomes.append(Outcome(f"growth, {scenario}", about, *cells, times, goal=Goal(0.9, 1.1)))
    return outcomes


def _sides(**job: Any) -> tuple[tuple[str, Job], ...]:
    return ((OURS, Job("train", **job)), (THEIRS, Job("pytorch", **job)))


_GRADUAL = ("gradual_unfreezing", "none_frozen")
_FULL = _sides(scenario="none_frozen", sentences=2048)

CASES: Mapping[str, Case] = {
    "backbone_frozen": Case(
        _sides(scenario="backbone_frozen", sentences=4096, epochs=10), _faster(Goal(low=8))
    ),
    "heads": Case(
        (
            ("many", Job("heads", sentences=4096, epochs=10, variants=64)),
            ("one", Job("heads", sentences=4096, epochs=10)),
        ),
        _times_one("heads", "64 heads at once against one, on cached vectors", Goal(high=10)),
    ),
    "top_2": Case(_sides(scenario="top_2", sentences=1024, epochs=5), _faster(Goal(low=1.3))),
    "none_frozen": Case(_FULL, _faster(Goal(low=1), steps_only=True)),
    "share_of_peak": Case(
        (*_FULL, ("peak", Job("peak"))), _share_of_peak(Goal(low=60)), optional=(THEIRS,)
    ),
    "optimizer_state": Case(
        tuple((name, Job("train", scenario=name)) for name in ("backbone_frozen", "none_frozen")),
        _state,
        repeated=False,
    ),
    "gradual_unfreezing": Case(
        tuple(
            (name, Job("train", name, sentences=1024, epochs=7, recipe=name != "none_frozen"))
            for name in _GRADUAL
        ),
        _times_one(
            "gradual unfreezing",
            "7 epochs in all, against `none_frozen`: whole run",
            Goal(high=0.6),
            labels=_GRADUAL,
        ),
    ),
    "growth": Case(
        tuple(
            (f"{name}, {size}", Job("train", scenario=name, sentences=sentences, fresh=True))
            for name in ("backbone_frozen", "none_frozen")
            for size, sentences in (("small", 1024), ("large", 10240))
        ),
        _growth,
    ),
    "seeds": Case(
        tuple(
            (label, Job("seeds", scenario="none_frozen", sentences=1024, variants=seeds))
            for label, seeds in (("many", 8), ("one", 1))
        ),
        _times_one(
            "seeds",
            "8 seeds at once against one, `none_frozen`: training steps",
            Goal(high=2.5),
            key="train_seconds",
        ),
        platform="gpu",
    ),
}
