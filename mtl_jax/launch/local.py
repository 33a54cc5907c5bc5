"""Processes on this machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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
from mtl_jax.studies.work_queue import forgive

# More processes, or devices of one, are a slip of the keyboard.
_MOST = 1024
# How often several processes are begun again by default.
_TRIES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local(Options):
    """Run processes on this machine.

    With --tasks, several processes share the batches of a training run, or of each arm of a
    study; if one fails, the others are stopped, and the exit status is that of the one that
    failed. With --workers, several processes share the arms of a study, and each trains arms by
    itself. Crashed processes are restarted a few times.
    """

    tasks: int = 1
    """processes that share each batch"""
    workers: int = 1
    """processes that share the arms of a study; a last one writes the report"""
    devices_per_task: int | None = None
    """CPU devices per process; by default as in XLA_FLAGS, otherwise 1"""
    gpus_per_task: int | None = None
    """GPUs per process, in the order of CUDA_VISIBLE_DEVICES or from 0 on; by default all GPUs \
are divided among the processes"""
    pin: bool = True
    """bind each of several processes to its own cores, if taskset is available and there are \
enough cores; otherwise all share all cores"""
    grace: float = 60.0
    """seconds that the other processes have to exit after one has failed, before they are killed"""
    retries: int | None = None
    """how often a crashed process is restarted from its last checkpoint; by default 2 for \
several processes, and 0 for one"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_outside(1, _MOST, "tasks", "workers", "devices_per_task", "gpus_per_task")
        self._refuse_outside(0, 86_400, "grace")
        self._refuse_outside(0, 65_535, "retries")

    @property
    def _processes(self) -> int:
        return max(self.tasks, self.workers)

    def launch(self, work: Work, _run_id: str) -> int:
        """Runs it; returns the exit status, unless this process becomes the only one.

        Raises:
            UserError: It can't be run so.
        """
        work.refuse_tasks(self.tasks)
        work.refuse_workers(self.workers, self.tasks)
        commands, changes = self._commands(work), self._environments()
        gather = work.command(python(), "--gather")
        if self.dry_run:
            for command, change in zip(commands, changes, strict=True):
                print(quoted([f"{name}={value}" for name, value in change.items()] + command))
            if self.workers > 1:
                print(quoted(gather))
            return 0
        environments = [{**os.environ, **change} for change in changes]
        tries = (0 if self._processes == 1 else _TRIES) if self.retries is None else self.retries
        if self._processes == 1 and tries == 0:
            sys.stdout.flush()
            os.execve(commands[0][0], commands[0], environments[0])  # noqa: S606
        if self.workers > 1:
            # Whoever asks again has mended what arms have failed of.
            forgive(work.claims)
        ended = self._run(commands, environments, tries)
        if self.workers == 1:
            return ended.status
        if all(ended.of_each) or (ended.status and ended.told):
            return ended.status
        return run_together([gather], [os.environ], self.grace).status

    def _run(
        self,
        commands: Sequence[Sequence[str]],
        environments: Sequence[Mapping[str, str]],
        tries: int,
    ) -> Ended:
        """Runs the processes, and again those that crashed; how each has ended at last."""
        # Each worker goes on by itself; those of a run are begun again together.
        alone = self.workers > 1
        ended = run_together(commands, environments, self.grace, alone=alone)
        for done in range(1, tries + 1):
            of_each = ended.of_each if alone else (ended.status,) * len(commands)
            again = [n for n, status in enumerate(of_each) if self._crashed(status)]
            if ended.told or not again:
                break
            say(f"it crashed (status {of_each[again[0]]}): restarted, {done} of {tries} times")
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

    def _crashed(self, status: int) -> bool:
        return status not in (0, MISTAKE, *GONE_ON_WITH, 128 + signal.SIGINT)

    def _commands(self, work: Work) -> list[list[str]]:
        if self._processes == 1:
            return [work.command(python())]
        own = (work.worker() if self.workers > 1 else work.distributed()).command(python())
        commands = [own] * self._processes
        return [
            [*_on_cores(own), *command]
            for own, command in zip(self._cores(), commands, strict=True)
        ]

    def _cores(self) -> list[list[int]]:
        """The cores of each process; none where they are not shared out."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        each = len(cores) // self._processes if self.pin and shutil.which("taskset") else 0
        return [cores[i * each : (i + 1) * each] for i in range(self._processes)]

    def _environments(self) -> list[dict[str, str]]:
        """What each process has in its environment beside what this one has."""
        changes: list[dict[str, str]] = [{} for _ in range(self._processes)]
        if self.tasks > 1:
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
        by_itself = self._processes > 1 and _may_be_gpus(os.environ) and _gpus(os.environ)
        if self.gpus_per_task or by_itself:
            gpus = self._split(os.environ)
            for change, own in zip(changes, gpus, strict=True):
                change["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return changes

    def _split(self, environment: Mapping[str, str]) -> list[list[str]]:
        """Which GPUs each process has.

        Raises:
            UserError: There are not enough.
        """
        count, gpus = self._processes, _gpus(environment)
        each = self.gpus_per_task or len(gpus) // count
        if self.gpus_per_task and not gpus and "CUDA_VISIBLE_DEVICES" not in environment:
            # They may be there all the same: they are counted as they are asked for.
            gpus = [str(number) for number in range(count * each)]
        if each == 0 or len(gpus) < count * each:
            named = environment.get("CUDA_VISIBLE_DEVICES")
            where = "here" if named is None else f"in CUDA_VISIBLE_DEVICES={named}"
            raise UserError(
                f"{count} processes need {count * max(each, 1)} GPUs, and there are {len(gpus)} "
                f"{where}: use fewer, or set JAX_PLATFORMS=cpu"
            )
        return [gpus[start : start + each] for start in range(0, count * each, each)]


def _on_cores(cores: Sequence[int]) -> list[str]:
    return ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _may_be_gpus(environment: Mapping[str, str]) -> bool:
    return bool({"", "cuda", "gpu"} & {*environment.get("JAX_PLATFORMS", "").split(",")})


def _gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that a process here sees."""
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    there = [path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdecimal()]
    return [str(number) for number in range(len(there))]
