"""Does a study lose or double an arm when its workers are killed, again and again?

    python -m tests.faults.workers --workdir DIR

The study is trained by one call; then by several workers, of which one after the other is killed
by SIGKILL in the midst of an arm, and started again. What is gathered has to be the same lines of
``results.jsonl``, up to times. By default these are 60 arms, 4 workers and 30 kills, on a tiny
random encoder.

What comes after ``--`` are flags of the study ``freezing``, in the place of the default's.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.core.command_line import guarded, parse
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.core.paths import expanded
from mtl_jax.studies.leases import holder, standings
from mtl_jax.studies.work_queue import FOLDER
from tests.faults.runs import without_times

_LOOK_SECONDS = 0.02
_SCENARIOS = ("all_frozen", "backbone_frozen", "top_1", "bias_only", "layer_norm_only")
DEFAULT_STUDY = (
    "--arms",
    *_SCENARIOS,
    "--seeds",
    *map(str, range(12)),
    "--max-train-examples=64",
    "--max-validation-examples=32",
    "--max-test-examples=32",
    "--epochs=2",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kills:
    """How many workers there are, and how often one is killed."""

    workdir: str
    """a new folder for the studies"""
    workers: int = 4
    """at once"""
    kills: int = 30
    """of a worker that has an arm"""
    within: float = 2.0
    """seconds in which one comes after another, and so how long a worker may have had its arm"""
    seed: int = 0
    """of every moment"""


def disturbed(
    folder: Path,
    command: Sequence[str],
    asked: Kills,
    start: Callable[..., Any] = subprocess.Popen,
) -> int:
    """Runs workers to the end of a study, of which some are killed, and started again.

    Args:
        folder: Of the study.
        command: Starts a worker.
        asked: How many, and how often.
        start: Starts a process, as ``subprocess.Popen``.

    Returns:
        How many were killed: less than asked, where the study was done before.

    Raises:
        UserError: A worker that was not killed did not end well.
    """
    dice, killed = random.Random(asked.seed), 0  # noqa: S311
    moment = time.monotonic()
    there = {process.pid: process for process in (start(command) for _ in range(asked.workers))}
    while there:
        time.sleep(_LOOK_SECONDS)
        due = killed < asked.kills and time.monotonic() >= moment
        if due and (pids := _at_work(folder / FOLDER) & {*there}):
            moment = time.monotonic() + dice.uniform(0.0, asked.within)
            pid = dice.choice(sorted(pids))
            os.kill(pid, signal.SIGKILL)
            status = there.pop(pid).wait()
            if status == -signal.SIGKILL:
                killed += 1
                process = start(command)
                there[process.pid] = process
        for pid, process in list(there.items()):
            if (status := process.poll()) is not None:
                del there[pid]
                if status:
                    raise UserError(f"a worker of {folder} has ended with status {status}")
    return killed


def _at_work(claims: Path) -> set[int]:
    """The processes that have claimed an arm and not ended it."""
    found = [
        holder(claims / f"{arm}.{len(standing.ends)}")
        for arm, standing in standings(claims).items()
        if standing.claimed
    ]
    return {each.pid for each in found if each is not None}


def results(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``results.jsonl``, in their order, without times."""
    return [without_times(line) for line in read_lines(folder / "results.jsonl")]


def carry_out(asked: Kills, flags: Sequence[str]) -> bool:
    """Trains the study undisturbed and disturbed, and says how that ended.

    Returns:
        Whether both have left the same.

    Raises:
        UserError: The folder is not new, or a study can't be trained.
    """
    from tests.conftest import SMALL, write_checkpoint

    folder = expanded(asked.workdir).absolute()
    if folder.exists():
        raise UserError(f"--workdir {folder} is there already: name a new folder")
    flags = [f"--backbone={write_checkpoint(folder / 'backbone', SMALL)}", *flags]

    def command(name: str, *more: str) -> list[str]:
        study = [sys.executable, "-m", "mtl_jax", "study", "freezing"]
        return [*study, f"--workdir={folder / name}", *flags, *more]

    def call(name: str, *more: str) -> None:
        if status := subprocess.run(command(name, *more), check=False).returncode:
            raise UserError(f"the study in {folder / name} has ended with status {status}")

    call("undisturbed")
    killed = disturbed(folder / "disturbed", command("disturbed", "--worker"), asked)
    call("disturbed", "--gather")
    known, found = results(folder / "undisturbed"), results(folder / "disturbed")
    key = [(line["arm"], line["seed"]) for line in found]
    same = sorted(known, key=str) == sorted(found, key=str)
    deaths = sum(each.deaths for each in standings(folder / "disturbed" / FOLDER).values())
    print(
        f"{killed} kills among {asked.workers} workers, {deaths} arms taken over from the dead: "
        f"{len({*key})} of {len(known)} arms, {len(key) - len({*key})} doubled, "
        f"{'the same results' if same else 'OTHER RESULTS'}"
    )
    return same and len(key) == len(known)


def _main(argv: Sequence[str]) -> None:
    own, flags = list(argv), list(DEFAULT_STUDY)
    if "--" in own:
        place = own.index("--")
        own, flags = own[:place], own[place + 1 :]
    if not carry_out(parse(Kills, own, "python -m tests.faults.workers", __doc__ or ""), flags):
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(guarded(_main, sys.argv[1:]))
