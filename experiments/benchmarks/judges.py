"""How what the benchmark has measured is judged: ratios of medians, and the goals of these.

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

from mtl_jax.core.errors import UserError
from mtl_jax.studies.report.document import Cell
from mtl_jax.studies.stats.formatting import MISSING, byte_size, count_of, fixed

Sample = Mapping[str, Any]
"""What one measurement gave; see ``workers.MEASUREMENTS``."""
Samples = Mapping[str, Sequence[Sample]]
"""Per label of a case's jobs, the samples of its repeats."""

OURS, THEIRS = "mtl_jax", "PyTorch"
# Steps between the checkpoints whose cost is measured.
CHECKPOINT_EVERY = 10


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


def forward_flops(
    lengths: np.ndarray, hidden: int, intermediate: int, layers: int, *, gated: bool = False
) -> float:
    """Useful FLOPs of one pass over texts of int [n] ``lengths``; see the module.

    ``gated`` says whether the position-wise network has a third product.
    """
    lengths = lengths.astype(np.float64)
    weights = 2 * lengths.sum() * (4 * hidden**2 + (2 + gated) * hidden * intermediate)
    return float(layers * (weights + 4 * hidden * (lengths**2).sum()))


def values(samples: Sequence[Sample], key: str, scale: float = 1.0) -> list[float]:
    """One number of each sample, times ``scale``."""
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


def faster(
    goal: Goal, *, steps_only: bool = False, name: str | None = None, what: str = "whole run"
) -> Callable[[Samples], list[Outcome]]:
    """Our speed as a multiple of PyTorch's, over the whole run or its training steps.

    Args:
        goal: Of the multiple.
        steps_only: Whether the training steps alone count.
        name: The row's; by default the scenario.
        what: What counts else.
    """

    def judge(samples: Samples) -> list[Outcome]:
        ours, theirs = (
            per_sentence(samples[side]) if steps_only else values(samples[side], "seconds")
            for side in (OURS, THEIRS)
        )
        about = f"{title(samples[OURS][0])}: {'training steps' if steps_only else what}"
        unit = "ms a sentence" if steps_only else "s"
        cells = spread(ours, unit), spread(theirs, unit)
        speed_up = statistics.median(theirs) / statistics.median(ours)
        row = name or samples[OURS][0]["scenario"]
        return [Outcome(row, about, *cells, speed_up, goal=goal)]

    return judge


def sentences_a_second(name: str, goal: Goal) -> Callable[[Samples], list[Outcome]]:
    """How many vectors of sentences are made in a second, as a multiple of the other side's."""

    def judge(samples: Samples) -> list[Outcome]:
        ours, theirs = (
            [s["sentences"] / s["seconds"] for s in samples[side]] for side in (OURS, THEIRS)
        )
        times = statistics.median(ours) / statistics.median(theirs)
        count = count_of(samples[OURS][0]["sentences"], "sentence")
        about = f"vectors of {count}, against sentence-transformers: compilation included"
        cells = spread(ours, "a second"), spread(theirs, "a second")
        return [Outcome(name, about, *cells, times, goal=goal)]

    return judge


def times_one(
    name: str,
    about: str,
    goal: Goal,
    key: str = "seconds",
    labels: tuple[str, str] = ("many", "one"),
) -> Callable[[Samples], list[Outcome]]:
    """What many at once take, or the first of two, as a multiple of what the other takes."""

    def judge(samples: Samples) -> list[Outcome]:
        many, one = (values(samples[label], key) for label in labels)
        times = statistics.median(many) / statistics.median(one)
        return [Outcome(name, about, spread(many, "s"), spread(one, "s"), times, goal=goal)]

    return judge


def share_of_peak(goal: Goal) -> Callable[[Samples], list[Outcome]]:
    """Useful FLOPs a second in training steps, as a share of the fastest matrix product's."""

    def judge(samples: Samples) -> list[Outcome]:
        peak = values(samples["peak"], "flops_per_second", 1e-9)
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


def second_start(goal: Goal) -> Callable[[Samples], list[Outcome]]:
    """Seconds until a second start has an answer or takes a step, beside those of the first."""
    about = {
        "finished": "a finished run says that it is, from the command to its end",
        "killed": "a killed run takes its next step, from the command on",
    }

    def judge(samples: Samples) -> list[Outcome]:
        outcomes = []
        for label, those in samples.items():
            seconds, first = values(those, "seconds"), values(those, "first_seconds")
            middle = statistics.median(seconds)
            cells = spread(seconds, "s"), spread(first, "s")
            name = f"second start, {label}"
            outcomes.append(Outcome(name, about[label], *cells, middle, " s", goal))
        return outcomes

    return judge


def optimizer_state(samples: Samples) -> list[Outcome]:
    """The bytes of one scenario's optimizer state as a share of the other's."""
    names = ("backbone_frozen", "none_frozen")
    some, all_ = (samples[name][0]["optimizer_state_bytes"] for name in names)
    cells = "`backbone_frozen` against `none_frozen`", Cell(byte_size(some)), Cell(byte_size(all_))
    return [Outcome("optimizer state", *cells, 100 * some / all_, " %", Goal(high=0.1))]


def lighter(scenario: str, goal: Goal) -> Callable[[Samples], list[Outcome]]:
    """How much faster steps are than those of ``none_frozen``, and the share of its moments."""

    def judge(samples: Samples) -> list[Outcome]:
        some, all_ = samples[scenario], samples["none_frozen"]
        times = [per_sentence(each) for each in (some, all_)]
        faster = statistics.median(times[1]) / statistics.median(times[0])
        cells = spread(times[0], "ms a sentence"), spread(times[1], "ms a sentence")
        about = f"{title(some[0])}, against `none_frozen`: training steps"
        own, whole = (each[0]["optimizer_state_bytes"] for each in (some, all_))
        state = Cell(byte_size(own)), Cell(byte_size(whole))
        share = f"`{scenario}` against `none_frozen`: optimizer state"
        return [
            Outcome(scenario, about, *cells, faster, goal=goal),
            Outcome(f"state, {scenario}", share, *state, 100 * own / whole, " %", Goal(high=2)),
        ]

    return judge


def growth(samples: Samples) -> list[Outcome]:
    """What a sentence costs with ten times the data, as a multiple of what it costs without."""
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
            f"{' against '.join(byte_size(max(values(p, 'peak_bytes'))) for p in (large, small))}"
        )
        cells = spread(many, "ms a sentence"), spread(few, "ms a sentence")
        outcomes.append(Outcome(f"growth, {scenario}", about, *cells, times, goal=Goal(0.9, 1.1)))
    return outcomes


def share_of_speed(samples: Samples) -> list[Outcome]:
    """The speed of two processes of one device each, as a share of one's with two devices."""
    two, one = (per_sentence(samples[label]) for label in ("two processes", "one process"))
    share = statistics.median(one) / statistics.median(two)
    about = f"{title(samples['one process'][0])}: a device in each of two processes, or both in one"
    cells = spread(two, "ms a sentence"), spread(one, "ms a sentence")
    return [Outcome("two processes", about, *cells, share, goal=Goal(low=0.8))]


def cost_of_checkpoints(samples: Samples) -> list[Outcome]:
    """What a checkpoint costs, as a share of the 50 steps before it.

    A few seconds of checkpoints would be lost in the noise of minutes of steps: they are
    saved more often than that, and the difference is divided by their number.
    """
    often, never = (values(samples[label], "seconds") for label in ("often", "never"))
    sample = samples["never"][0]
    steps = sample["epochs"] * math.ceil(sample["train_examples"] / sample["batch_size"])
    saved = steps // CHECKPOINT_EVERY - (steps % CHECKPOINT_EVERY == 0)
    each = (statistics.median(often) - statistics.median(never)) / saved
    fifty = 50 * statistics.median(values(samples["never"], "train_seconds")) / steps
    about = (
        f"{title(sample)}: whole run with {count_of(saved, 'checkpoint')} beside the last, and "
        f"without; {each:.2f} s each, against {fifty:.1f} s of 50 steps"
    )
    cells = spread(often, "s"), spread(never, "s")
    return [Outcome("checkpoints", about, *cells, 100 * each / fifty, " %", Goal(high=5))]
