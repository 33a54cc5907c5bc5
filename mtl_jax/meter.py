"""Keeps count of a run's losses and seconds, and notices a step that is not finite."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mtl_jax.config import TASKS
from mtl_jax.data.batches import HostBatch
from mtl_jax.errors import SharedError

Keep = Callable[[int, str | None, HostBatch], str]
"""Is given the step, the task whose loss is not finite (None: the gradient's norm), and the batch;
names the batch."""


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
    """

    def __init__(self, keep: Keep, saved: Mapping[str, Any] | None = None):
        self._keep = keep
        saved = saved or {}
        self.train_seconds: float = saved.get("train_seconds", 0.0)
        self.compile_seconds: float = saved.get("compile_seconds", 0.0)
        self.examples: int = saved.get("examples", 0)
        self._sums: dict[str, list[float]] = saved.get("sums") or self._zero()
        self._pending: tuple[int, Callable[[], Mapping[str, Any]], HostBatch] | None = None
        self._last: dict[str, Any] = {}

    @staticmethod
    def _zero() -> dict[str, list[float]]:
        return {task: [0.0, 0.0] for task in TASKS}

    def state(self) -> dict[str, Any]:
        """What ``saved`` takes."""
        return {
            "train_seconds": self.train_seconds,
            "compile_seconds": self.compile_seconds,
            "examples": self.examples,
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
                raise self._refused(f"the {task} loss", step, task, batch)
        if not math.isfinite(norm):
            # The losses are from before the update, which this gradient has spoilt.
            raise self._refused("the norm of the gradient", step, None, batch)
        for task, (total, count) in metrics["loss"].items():
            self._sums[task][0] += float(total)
            self._sums[task][1] += float(count)
            losses[task] = float(total) / max(float(count), 1.0)
        self._last = {"step": step, "loss": losses, "grad_norm": norm}
        if weights := metrics.get("task_weights"):
            self._last["task_weights"] = {task: float(weight) for task, weight in weights.items()}
        return self._last

    def _refused(self, what: str, step: int, task: str | None, batch: HostBatch) -> SharedError:
        kept = self._keep(step, task, batch)
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
