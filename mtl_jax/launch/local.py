"""Processes on this machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError
from mtl_jax.launch.command import Work
from mtl_jax.launch.options import (
    GONE_ON_WITH,
    MISTAKE,
    Options,
    device_flags,
    python,
    quoted,
)
from mtl_jax.launch.subprocesses import Ended, run_together

# The statuses of a part of a study that has come to its end: 1 where an arm of it has failed.
_PART_ENDED = (0, 1)
# More processes, or devices of one, are a slip of the keyboard.
_MOST = 1024
# How often several processes are begun again by default.
_TRIES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local(Options):
    """Run processes on this machine.

    Several share the batches of a training run, and the arms of a study. When one fails, the
    others are ended, and its status is that of all; what crashed is begun again, a few times.
    """

    tasks: int = 1
    """processes"""
    devices_per_task: int | None = None
    """CPU devices of each; by default as many as XLA_FLAGS says, else 1"""
    gpus_per_task: int | None = None
    """GPUs of each, in turn from CUDA_VISIBLE_DEVICES or from 0; by default each sees all"""
    pin: bool = True
    """give each of several processes cores of its own, where there is taskset and one for each; \
else all compete for all of them"""
    grace: float = 60.0
    """seconds that the others have to end when one has failed, before they are killed"""
    retries: int | None = None
    """how often what crashed is begun again, from its last checkpoint; by default 2 for several \
processes, and 0 for one"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_outside(1, _MOST, "tasks", "devices_per_task", "gpus_per_task")
        self._refuse_outside(0, 86_400, "grace")
        self._refuse_outside(0, 65_535, "retries")

    def launch(self, work: Work, _run_id: str) -> int:
        """Runs it; returns the exit status, unless this process becomes the only one.

        Raises:
            UserError: It can't be run so.
        """
        work.refuse_tasks(self.tasks)
        commands, changes = self._commands(work), self._environments(work)
        gather = work.command(python(), "--gather")
        if self.dry_run:
            for command, change in zip(commands, changes, strict=True):
                print(quoted([f"{name}={value}" for name, value in change.items()] + command))
            if self.tasks > 1 and work.study:
                print(quoted(gather))
            return 0
        environments = [{**os.environ, **change} for change in changes]
        tries = (0 if self.tasks == 1 else _TRIES) if self.retries is None else self.retries
        if self.tasks == 1 and tries == 0:
            sys.stdout.flush()
            os.execve(commands[0][0], commands[0], environments[0])  # noqa: S606
        ended = self._run(commands, environments, work, tries)
        if self.tasks == 1 or work.trains:
            return ended.status
        stopped = [status for status in ended.statuses if status not in _PART_ENDED]
        if len(stopped) == self.tasks or (stopped and ended.told):
            return ended.status
        return run_together([gather], [os.environ], self.grace).status

    def _run(
        self,
        commands: Sequence[Sequence[str]],
        environments: Sequence[Mapping[str, str]],
        work: Work,
        tries: int,
    ) -> Ended:
        """Runs the processes, and again those that crashed; how each has ended at last."""
        # Of a study each goes on by itself; those of a run are begun again together.
        alone = work.study and self.tasks > 1
        ended = run_together(commands, environments, self.grace, alone=alone)
        for done in range(1, tries + 1):
            of_each = ended.of_each if alone else (ended.status,) * len(commands)
            again = [n for n, status in enumerate(of_each) if self._crashed(status, alone)]
            if ended.told or not again:
                break
            say(f"it crashed (status {of_each[again[0]]}): begun again, {done} of {tries} times")
            later = run_together(
                [commands[n] for n in again],
                [environments[n] for n in again],
                self.grace,
                alone=alone,
            )
            merged = {
                **dict(enumerate(ended.of_each)),
                **dict(zip(again, later.of_each, strict=True)),
            }
            kept = [status for n, status in enumerate(ended.of_each) if n not in again]
            ended = Ended((*kept, *later.statuses), tuple(merged.values()), later.told)
        return ended

    def _crashed(self, status: int, part: bool) -> bool:
        ends = (0, MISTAKE, *GONE_ON_WITH, 128 + signal.SIGINT)
        return status not in ends and not (part and status in _PART_ENDED)

    def _commands(self, work: Work) -> list[list[str]]:
        if self.tasks == 1:
            return [work.command(python())]
        if work.study:
            parts = (f"--part={part}/{self.tasks}" for part in range(self.tasks))
            commands = [work.command(python(), part) for part in parts]
        else:
            commands = [work.distributed().command(python())] * self.tasks
        return [
            [*_on_cores(own), *command]
            for own, command in zip(self._cores(), commands, strict=True)
        ]

    def _cores(self) -> list[list[int]]:
        """The cores of each process; none where they are not shared out."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        each = len(cores) // self.tasks if self.pin and shutil.which("taskset") else 0
        return [cores[i * each : (i + 1) * each] for i in range(self.tasks)]

    def _environments(self, work: Work) -> list[dict[str, str]]:
        """What each process has in its environment beside what this one has."""
        changes: list[dict[str, str]] = [{} for _ in range(self.tasks)]
        if self.tasks > 1 and work.trains:
            address = f"127.0.0.1:{_free_port()}"
            for index, change in enumerate(changes):
                change["JAX_COORDINATOR_ADDRESS"] = address
                change["JAX_COORDINATOR_BIND_ADDRESS"] = address
                change["JAX_NUM_PROCESSES"] = str(self.tasks)
                change["JAX_PROCESS_ID"] = str(index)
        if self.devices_per_task:
            flags = f"{os.environ.get('XLA_FLAGS', '')} {device_flags(self.devices_per_task)}"
            for change in changes:
                change["XLA_FLAGS"] = flags.strip()
        if self.gpus_per_task:
            gpus = _split(self.tasks, self.gpus_per_task, os.environ)
            for change, own in zip(changes, gpus, strict=True):
                change["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return changes


def _on_cores(cores: Sequence[int]) -> list[str]:
    return ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _split(tasks: int, each: int, environment: Mapping[str, str]) -> list[Sequence[str]]:
    """Which GPUs each of so many processes has.

    Raises:
        UserError: There are not enough.
    """
    asked = tasks * each
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = list(map(str, range(asked))) if visible is None else [*filter(None, visible.split(","))]
    if len(gpus) < asked:
        raise UserError(
            f"--tasks {tasks} with --gpus-per-task {each} need {asked} GPUs, and "
            f"CUDA_VISIBLE_DEVICES={visible} has {len(gpus)}: use fewer"
        )
    return [gpus[start : start + each] for start in range(0, asked, each)]
