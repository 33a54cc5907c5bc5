"""Where a run is in its list of phases, and when one ends; a JSON object carries it over."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from mtl_jax.freezing.phase import Phase
from mtl_jax.training import metrics

# What a phase is judged by where no task has a label.
_NOTHING = 0.0


def beats(value: Any, best: Any) -> Any:
    """Whether a measurement takes the place of the best one before it.

    The first of equal ones stays: it cost less. What is not a number takes no place. Of arrays,
    element by element.

    Args:
        value: The score, higher is better.
        best: The best one before; minus infinity where there is none.
    """
    return value > best


def score(phase: Phase, validation: Mapping[str, Any]) -> float:
    """What a phase is judged by, higher is better.

    Args:
        phase: Its ``metric`` and ``task_metric``, else the mean over the tasks that it trains for.
        validation: ``{task: {"macro_f1", "loss"}}``, with ``r2`` of a regression; None where a
            task has no label.
    """
    losses = phase.metric == "loss"
    tasks = [phase.task_metric] if phase.task_metric else phase.tasks
    values = [
        validation[task]["loss"] if losses else metrics.score(validation[task]) for task in tasks
    ]
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else _NOTHING
    return -mean if losses else mean


@dataclasses.dataclass
class PhaseProgress:
    """Where a run is.

    Attributes:
        phase: The phase, from 0.
        start: Steps of the run before it.
        passed: Epochs of the run before it.
        schedule_start: Steps of its schedule before it.
        positions: Per set of training texts the batches before it.
        measured: ``(step, score)`` of each of its measurements.
        best_before: The best score before it, by its own ``metric``; None in the first.
        drifted: Whether a frozen head's predictions were too far at any of its measurements.
        over: Why it is over; None while it is not.
        stopped: Why no other phase follows, where the recipe has one.
        frozen_before: Digest of the frozen leaves at its start.
        certificates: Of the phases before it.
        features: What keeping frozen activations has cost so far: ``(stages, seconds)``.
    """

    phase: int = 0
    start: int = 0
    passed: float = 0.0
    schedule_start: int = 0
    positions: dict[str, int] = dataclasses.field(default_factory=dict)
    measured: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    best_before: float | None = None
    drifted: bool = False
    over: str | None = None
    stopped: str | None = None
    frozen_before: str = ""
    certificates: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    features: list[tuple[list[str], float]] = dataclasses.field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """A JSON object for ``load``."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of ``state``, after a trip through JSON."""
        lists = {name: [tuple(pair) for pair in state[name]] for name in ("measured", "features")}
        return cls(**{**state, **lists})

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the phase's best measurement; see ``beats``."""
        best = None
        for step, value in self.measured:
            if beats(value, -math.inf if best is None else best[1]):
                best = step, value
        return best

    def stale(self, min_gain: float) -> int:
        """Measurements in a row, up to the last, that have not raised the best by ``min_gain``."""
        best, since = -math.inf, 0
        for _, value in self.measured:
            since = 0 if value > best + min_gain or best == -math.inf else since + 1
            best = max(best, value)
        return since

    def gain(self) -> float:
        """What the phase has added to the best score before it."""
        best = self.best
        if best is None or self.best_before is None:
            return math.inf
        return best[1] - self.best_before

    def verdict(self, phase: Phase, step: int, bound: int) -> str | None:
        """Why the phase is over after the measurement at ``step``; None where it is not.

        Args:
            phase: The phase.
            step: Steps of the run.
            bound: Steps of the phase at most.
        """
        if phase.patience is not None and self.stale(phase.min_gain) >= phase.patience:
            return f"no better for {_count(phase.patience, 'measurement')}"
        if step - self.start >= bound:
            return f"{_count(bound, 'step')} done"
        return None

    def refusal(self, phase: Phase) -> str | None:
        """Why the next phase does not begin; None where it does."""
        if phase.requires_gain is None or self.gain() >= phase.requires_gain:
            return None
        return (
            f"phase {self.phase + 1} changed the best score by {self.gain():+.4f}, "
            f"{phase.scenario} asks for {phase.requires_gain:g}"
        )

    def target(self, phase: Phase, step: int) -> int:
        """The checkpoint that the next phase goes on from, of a phase that is over at ``step``."""
        return self.best[0] if phase.keep_best and self.best else step

    def needed(self, phase: Phase) -> list[int]:
        """The checkpoints that ``target`` may come to name."""
        return [self.best[0]] if phase.keep_best and self.best else []

    def next(
        self,
        before: Phase,
        phase: Phase,
        step: int,
        epochs: float,
        texts: str,
    ) -> PhaseProgress:
        """The progress at the start of the next phase.

        Args:
            before: The phase that is over.
            phase: The next one.
            step: Steps of the run.
            epochs: Passes that the phase has made.
            texts: Names the set of its training texts.
        """
        steps, best = step - self.start, self.best
        # Scores by another metric say nothing of it.
        alike = _judged_by(before) == _judged_by(phase)
        known = [value for value in (self.best_before, best and best[1]) if value is not None]
        return PhaseProgress(
            phase=self.phase + 1,
            start=step,
            passed=self.passed + epochs,
            schedule_start=0 if phase.restart else self.schedule_start + steps,
            positions={**self.positions, texts: self.positions.get(texts, 0) + steps},
            best_before=max(known) if alike and known else None,
            certificates=self.certificates,
            features=self.features,
        )

    def book_features(self, stages: Sequence[str], seconds: float) -> float:
        """What of ``seconds`` is new, where some of the stages have been paid for before.

        Args:
            stages: Names the texts, then each frozen stage, from the lowest.
            seconds: What computing their activations takes from the ids on.
        """
        paid = [
            cost
            for known, cost in self.features
            if list(stages[: len(known)]) == known[: len(stages)]
        ]
        self.features.append((list(stages), seconds))
        return max(seconds - max(paid, default=0.0), 0.0)


def _judged_by(phase: Phase) -> tuple[Any, ...]:
    return phase.metric, (phase.task_metric,) if phase.task_metric else phase.tasks


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def chained_steps(phases: Sequence[Phase], bounds: Sequence[int], index: int) -> int:
    """Steps of the schedule that a phase has, with those that share it.

    Args:
        phases: All phases.
        bounds: Steps of each at most.
        index: Which phase.
    """
    first = index
    while not phases[first].restart:
        first -= 1
    last = index + 1
    while last < len(phases) and not phases[last].restart:
        last += 1
    return sum(bounds[first:last])
