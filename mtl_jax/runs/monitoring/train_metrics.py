"""Keeps count of a run's losses and seconds, and notices a step that is not finite."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.core.errors import SharedError
from mtl_jax.data.batches import HostBatch

PARTS = ("frozen_pass", "measurement", "saving")
"""What a run spends time on beside its steps and compilation: the pass that computes what frozen
layers make of the training texts, evaluation, and checkpoints."""

# Steps whose seconds are kept for their median.
_MOST_TIMES = 256

Keep = Callable[[int, HostBatch], str]
"""Is given the step and the batch; keeps it, and says where."""


class Stopwatch:
    """Seconds between two looks, but for those between a look and the next ``start``."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def start(self) -> None:
        """Forgets the time since the last look."""
        self._started = time.perf_counter()

    def lap(self) -> float:
        """Seconds since it was last looked at or started."""
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        return seconds

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves what is done within out of the count."""
        before = time.perf_counter()
        yield
        self._started += time.perf_counter() - before


class StepTimes:
    """Seconds of single steps, from those of stretches between two looks at the clock.

    A row of steps begins with a device that has nothing to do. While it works on a step, the host
    sends off the next one, and waits for the one before: from the third look of a row on, a step
    takes from one look to the next. The first two looks come as soon as their steps are sent off,
    and the wait for the last two ends the row: together these times are those of two steps.

    Steps that had to be compiled are left out, unless there are no others. Of many steps every
    second, fourth ... is kept, so that a checkpoint stays small.

    Args:
        saved: What ``state`` gave.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None):
        saved = saved or {}
        self._kept: list[float] = list(saved.get("kept", ()))
        self._every: int = saved.get("every", 1)
        self._seen: int = saved.get("seen", 0)
        self._cold: float | None = saved.get("cold")
        self._start: list[tuple[float, int, bool]] = []

    def state(self) -> dict[str, Any]:
        """What ``saved`` takes; to be asked for between two rows."""
        return {
            "kept": list(self._kept),
            "every": self._every,
            "seen": self._seen,
            "cold": self._cold,
        }

    def sent(self, seconds: float, steps: int, compiled: bool) -> None:
        """Takes the seconds up to when so many steps have been sent off.

        Args:
            seconds: Since the last look, without compilation.
            steps: That one program takes.
            compiled: Whether the program had to be compiled.
        """
        if len(self._start) < 2:
            self._start.append((seconds, steps, compiled))
        else:
            self._take(seconds / steps, steps, compiled)

    def waited(self, seconds: float) -> None:
        """Takes the seconds until the last steps of a row were done, which end the row."""
        if self._start:
            sent, steps, compiled = zip(*self._start, strict=True)
            self._take((sum(sent) + seconds) / sum(steps), sum(steps), any(compiled))
            self._start.clear()

    def _take(self, seconds: float, steps: int, compiled: bool) -> None:
        if compiled:
            self._cold = seconds
            return
        for _ in range(steps):
            if self._seen % self._every == 0:
                self._kept.append(seconds)
            self._seen += 1
            if len(self._kept) > _MOST_TIMES:
                self._kept, self._every = self._kept[::2], 2 * self._every

    def summary(self) -> dict[str, Any]:
        """``step_seconds_median``, and the 10th and the 90th percentile as its range.

        None where no step was taken.
        """
        times = self._kept or ([] if self._cold is None else [self._cold])
        if not times:
            return {"step_seconds_median": None, "step_seconds_range": None}
        low, median, high = np.percentile(times, (10, 50, 90)).tolist()
        return {"step_seconds_median": median, "step_seconds_range": [low, high]}


class Meter:
    """Sums over the steps since ``reset``; a JSON object can carry it over a restart.

    A step's metrics are read when the next step has been dispatched, so that the device
    never waits for the host. Its batch is held until then, in case it has to be kept.

    Args:
        keep: Is told of a step that is not finite.
        saved: What ``state`` gave.

    Attributes:
        train_seconds: Seconds in training steps, without compilation and evaluation; of
            steps with several seeds at once this run's share.
        compile_seconds: Seconds spent compiling the training step, shared likewise.
        examples: Examples trained on.
        step_times: Seconds of single steps, shared likewise.
        beside: Seconds of the ``PARTS`` of a run beside its steps.
    """

    def __init__(self, tasks: Sequence[str], keep: Keep, saved: Mapping[str, Any] | None = None):
        self._tasks, self._keep = tuple(tasks), keep
        saved = saved or {}
        self.train_seconds: float = saved.get("train_seconds", 0.0)
        self.compile_seconds: float = saved.get("compile_seconds", 0.0)
        self.examples: int = saved.get("examples", 0)
        self.step_times = StepTimes(saved.get("step_seconds"))
        self.beside: dict[str, float] = dict.fromkeys(PARTS, 0.0) | saved.get("beside_seconds", {})
        self._sums: dict[str, list[float]] = saved.get("sums") or self._zero()
        self._pending: tuple[int, Callable[[], Mapping[str, Any]], HostBatch] | None = None
        self._last: dict[str, Any] = {}

    def _zero(self) -> dict[str, list[float]]:
        return {task: [0.0, 0.0] for task in self._tasks}

    def state(self) -> dict[str, Any]:
        """What ``saved`` takes."""
        return {
            "train_seconds": self.train_seconds,
            "compile_seconds": self.compile_seconds,
            "examples": self.examples,
            "step_seconds": self.step_times.state(),
            "beside_seconds": dict(self.beside),
            # A copy: it is written in the background while the sums go on.
            "sums": {task: list(sums) for task, sums in self._sums.items()},
        }

    @property
    def rate(self) -> float:
        """Examples per second, over the run."""
        return self.examples / self.train_seconds if self.train_seconds else 0.0

    def book(self, seconds: float, compile_seconds: float = 0.0) -> None:
        """Adds seconds of training steps, and of compiling them."""
        self.train_seconds += seconds
        self.compile_seconds += compile_seconds

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds of what is done within to one of ``PARTS``."""
        before = time.perf_counter()
        yield
        self.beside[part] += time.perf_counter() - before

    def wall_time(self, evaluation_compile_seconds: float) -> dict[str, float]:
        """The seconds of a run by what they were spent on, and their sum, ``total_seconds``.

        Args:
            evaluation_compile_seconds: Of the compilation that was measured with ``timed``.
        """
        passed, measured, saved = (self.beside[part] for part in PARTS)
        parts = {
            "compile_seconds": self.compile_seconds + evaluation_compile_seconds,
            "frozen_pass_seconds": passed,
            "step_seconds": self.train_seconds - passed,
            "measurement_seconds": max(measured - evaluation_compile_seconds, 0.0),
            "saving_seconds": saved,
        }
        return {**parts, "total_seconds": sum(parts.values())}

    def add(self, step: int, metrics: Callable[[], Mapping[str, Any]], batch: HostBatch) -> None:
        """Takes what gives the metrics of a step that may still be running; reads those before."""
        self.read()
        self._pending = (step, metrics, batch)
        self.examples += int((batch["example"] >= 0).sum())

    def read(self) -> dict[str, Any]:
        """Waits for the step that was added last.

        Returns:
            Its ``step``, mean ``loss`` per task in nats, and ``grad_norm``; ``task_weights``
            where these are not fixed.

        Raises:
            SharedError: A loss or the norm of the gradient is not finite; the batch is kept.
        """
        if self._pending is None:
            return self._last
        step, pending, batch = self._pending
        self._pending = None
        metrics = pending()
        norm, losses = float(metrics["grad_norm"]), {}
        for task, (total, _) in metrics["loss"].items():
            if not math.isfinite(total):
                raise self._refused(f"the {task} loss", step, batch)
        if not math.isfinite(norm):
            # The losses are from before the update, which this gradient has spoilt.
            raise self._refused("the norm of the gradient", step, batch)
        for task, (total, count) in metrics["loss"].items():
            self._sums[task][0] += float(total)
            self._sums[task][1] += float(count)
            losses[task] = float(total) / max(float(count), 1.0)
        self._last = {"step": step, "loss": losses, "grad_norm": norm}
        if weights := metrics.get("task_weights"):
            self._last["task_weights"] = {task: float(weight) for task, weight in weights.items()}
        return self._last

    def _refused(self, what: str, step: int, batch: HostBatch) -> SharedError:
        kept = self._keep(step, batch)
        return SharedError(
            f"{what} is not finite at step {step}, {kept}: lower the learning rates; the last "
            "checkpoint is kept"
        )

    @property
    def step(self) -> int:
        """The last step that was read; 0 where none was."""
        return self._last.get("step", 0)

    @property
    def losses(self) -> Mapping[str, float]:
        """Per task the mean loss of the last step that was read."""
        return self._last.get("loss", {})

    def mean_losses(self) -> dict[str, float | None]:
        """Per task the mean loss in nats since ``reset``; None without a label."""
        return {
            task: total / count if count else None for task, (total, count) in self._sums.items()
        }

    def reset(self) -> None:
        """Starts the sums anew, at the start of an epoch."""
        self._sums = self._zero()
