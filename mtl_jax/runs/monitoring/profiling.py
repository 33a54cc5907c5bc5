"""A profiler's trace of some of a run's steps, for TensorBoard or Perfetto."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import jax

from mtl_jax.core import distributed
from mtl_jax.core.console import say
from mtl_jax.core.errors import first_line
from mtl_jax.core.paths import expanded
from mtl_jax.runs.monitoring.train_metrics import Stopwatch
from mtl_jax.runs.phase_run import PhaseRun

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Trace:
    """Writes what the host and the devices did in the steps that were asked for.

    Steps that run as one program are traced together, also where some of them were not asked
    for. The trace begins and ends with idle devices. A trace that can't be made is told, and
    the run goes on.

    Args:
        steps: Which steps of the run, counted from 0; none for no trace.
        folder: Where it goes, in the layout of TensorBoard.
        total: Steps of the run at most.
    """

    def __init__(self, steps: range, folder: Path, total: int):
        self._steps, self._folder = steps, folder
        self._waits, self._runs = bool(steps), False
        if steps and steps.start >= total:
            self._waits = False
            asked = f"--profile {steps.start}:{steps.stop}"
            say(f"note: {asked} is beyond the {total:,} steps of the run: there will be no trace")

    def __call__(
        self,
        done: int,
        count: int,
        watch: Stopwatch,
        take: Callable[[*Arguments], Result],
        *args: *Arguments,
    ) -> Result:
        """Takes steps, with a trace where it is their turn.

        Args:
            done: Steps of the run before them.
            count: How many they are.
            watch: Does not count the time that starting and writing the trace takes.
            take: Takes the steps.
            *args: What from.

        Returns:
            What ``take`` does.
        """
        if self._waits and done < self._steps.stop and done + count > self._steps.start:
            jax.block_until_ready(args)
            with watch.aside():
                self._start()
        with jax.profiler.StepTraceAnnotation("train", step_num=done + 1):
            result = take(*args)
        if self._runs and done + count >= self._steps.stop:
            jax.block_until_ready(result)
            with watch.aside():
                self.close()
        return result

    def _start(self) -> None:
        self._waits = False
        try:
            self._folder.mkdir(exist_ok=True)
            jax.profiler.start_trace(self._folder, profiler_options=_without_python())
        except (OSError, RuntimeError) as error:
            self._failed(error)
        else:
            self._runs = True

    def close(self) -> None:
        """Writes a trace that has been begun; says so where none has been, and was asked for."""
        asked = f"{self._steps.start}:{self._steps.stop}"
        if self._waits:
            say(f"note: --profile {asked}: there is no trace, for none of these steps was taken")
            self._waits = False
        if not self._runs:
            return
        self._runs = False
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            self._failed(error)
        else:
            say(f"the trace of --profile {asked} is in {self._folder}")

    def _failed(self, error: Exception) -> None:
        reason = first_line(error)
        say(f"warning: there is no trace in {self._folder} ({reason}); the run goes on without")


def training_trace(run: PhaseRun) -> Trace:
    """The trace that a run asks for, which the first of several processes makes."""
    return Trace(
        run.config.watch.profiled if distributed.is_main() else range(0),
        expanded(run.config.workdir) / "profile",
        sum(plan.steps for plan in run.plans),
    )


def _without_python() -> jax.profiler.ProfileOptions:
    """Options of a trace without the calls of Python functions.

    To follow them, the profiler sets hooks in all threads of the interpreter, and a thread that
    begins or ends meanwhile, as those that read ahead do, can end the process by a segmentation
    fault (seen with JAX 0.10.2 on Python 3.11).
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options
