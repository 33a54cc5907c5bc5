"""Lines that tell how far a run is, where there is no terminal for a bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import jax
import psutil

from mtl_jax.core import distributed
from mtl_jax.core.console import duration, is_terminal, say
from mtl_jax.runs.phase_run import PhaseRun

GIB = 2**30


class Heartbeat:
    """Says about every so many seconds where the training of a run is.

    The time left is what the steps that are left take at the mean rate since the first one
    of this process, with all that was between them: evaluation, checkpoints, compilation.

    Args:
        every: Seconds between two lines; 0 for none.
        total: Steps of the run, or epochs of a sweep, at most.
        phases: How many it has.
        may_end_early: Whether it may take fewer steps.
        clock: Seconds from any start.
        write: Where the lines go.
    """

    def __init__(
        self,
        every: float,
        total: int,
        phases: int,
        may_end_early: bool,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] = say,
    ):
        self._every, self._total, self._phases = every, total, phases
        self._left = "at most" if may_end_early else "about"
        self._clock, self._write = clock, write
        self._first: tuple[float, int] | None = None
        self._last = 0.0

    def __call__(self, step: int, phase: int, losses: Mapping[str, float], rate: float) -> None:
        """Is told of every step, and says a line where one is due.

        Args:
            step: The last step of the run whose losses are known.
            phase: The phase, from 0.
            losses: Per task its mean loss in nats; before any is known it is told nothing.
            rate: Examples per second.
        """
        if not losses or not self.due(step):
            return
        of_phases = f" (phase {phase + 1} of {self._phases})" if self._phases > 1 else ""
        words = [f"step {step:,} of {self._total:,}{of_phases}"]
        words += [f"{task} {loss:.3f}" for task, loss in losses.items()]
        words += [f"{rate:.0f} examples/s", *memory_in_use(), *self.left(step)]
        self._write(", ".join(words))

    def due(self, step: int) -> bool:
        """Whether a line is due after this step; the first call starts the clock."""
        if not self._every:
            return False
        now = self._clock()
        if self._first is None:
            self._first, self._last = (now, step), now
            return False
        if now - self._last < self._every:
            return False
        self._last = now
        return True

    def left(self, step: int) -> list[str]:
        """What is left after this step, where a line is due, in words."""
        if self._first is None or step <= self._first[1]:
            return []
        start, before = self._first
        seconds = (self._total - step) * (self._last - start) / (step - before)
        return [f"{self._left} {duration(seconds)} left"]


def training_heartbeat(run: PhaseRun) -> Heartbeat:
    """The heartbeat of a run; the first of several processes has it, without a terminal's bar."""
    shown = distributed.is_main() and not is_terminal()
    return Heartbeat(
        run.config.watch.heartbeat if shown else 0.0,
        sum(plan.steps for plan in run.plans),
        len(run.plans),
        any(plan.may_end_early for plan in run.plans),
    )


def memory_in_use() -> list[str]:
    """What this process has resident, and what the fullest of its devices holds, if that tells."""
    words = [f"{psutil.Process().memory_info().rss / GIB:.1f} GiB"]
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if held := [stats["bytes_in_use"] for stats in known if "bytes_in_use" in stats]:
        words.append(f"{max(held) / GIB:.1f} GiB on the device")
    return words
