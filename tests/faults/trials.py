"""Trials of faults: a run is struck or its folder damaged, and it has to come to the same end."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mtl_jax.core.errors import SAVED, UserError, shortened
from mtl_jax.runs.checkpoints.manifest import DamageError
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.workdir import Workdir
from tests.faults.runs import Command, Ended, Moment, Pace, differences, is_saving

SAME = "ended bit for bit the same"
# How often a moment is drawn anew, where a run had ended before it or not begun yet.
_DRAWS = 20
# Part of the kills that come while a checkpoint is being written.
_WHILE_SAVING = 0.4
# Part of the damage that is done to the newest checkpoint, whatever others there are.
_NEWEST = 0.5


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        what: What was done.
        passed: Whether the run has come through.
        how: In what way it has, or what was wrong.
        while_saving: Whether a checkpoint was being written.
    """

    what: str
    passed: bool
    how: str
    while_saving: bool = False


class Trials:
    """Trials on copies of one run.

    Args:
        command: Starts its processes.
        folder: Where the copies go; that of a trial which was passed is removed.
        seed: Of every choice; a trial depends on it, its kind and its number alone.
    """

    def __init__(self, command: Command, folder: Path, seed: int):
        self._command, self._folder, self._seed = command, folder, seed
        self._whole, self._cut = folder / "whole", folder / "cut"
        self._pace: Pace | None = None

    def prepare(self) -> Pace:
        """Trains the run that is not interrupted, and one that is, to damage copies of both.

        Raises:
            UserError: The run doesn't come to an end, or doesn't save often enough.
        """
        self._pace = pace = self._command.pace(self._whole)
        # The last save but one is there, and a few before it.
        moment = Moment(0.0, max(pace.saves - 1, 1))
        for _ in range(_DRAWS):
            shutil.rmtree(self._cut, ignore_errors=True)
            ended = self._command.train(self._cut, signal=signal.SIGKILL, moment=moment)
            if (
                ended.status == -signal.SIGKILL
                and len(CheckpointReader(self._cut / "checkpoints").steps) > 1
            ):
                return pace
        raise UserError("the run has ended before it could be killed: make it longer")

    def kill(self, number: int) -> Outcome:
        """SIGKILL at a random moment."""
        draw = np.random.default_rng([self._seed, 1, number])
        while_saving = draw.random() < _WHILE_SAVING
        return self._strike(f"kill-{number}", signal.SIGKILL, self._moments(draw, while_saving))

    def terminate(self, number: int) -> Outcome:
        """SIGTERM at a random moment."""
        draw = np.random.default_rng([self._seed, 2, number])
        return self._strike(f"term-{number}", signal.SIGTERM, self._moments(draw, False))

    def _moments(self, draw: np.random.Generator, while_saving: bool) -> Callable[[], Moment]:
        assert self._pace is not None
        pace = self._pace
        if while_saving:
            return lambda: Moment(
                draw.uniform(0, pace.save_seconds), int(draw.integers(1, pace.saves + 1))
            )
        return lambda: Moment(draw.uniform(0, pace.seconds))

    def _strike(self, name: str, number: int, moment_of: Callable[[], Moment]) -> Outcome:
        folder = self._folder / name
        expected = SAVED if number == signal.SIGTERM else -number
        for _ in range(_DRAWS):
            shutil.rmtree(folder, ignore_errors=True)
            moment = moment_of()
            ended = self._command.train(folder, signal=number, moment=moment)
            # While Python starts or ends, SIGTERM ends it as any other process.
            outside = not (folder / "config.json").exists() or Workdir(folder).result() is not None
            if ended.status == expected or (ended.status and not outside):
                break
        else:
            return Outcome(name, False, "no moment was found at which it could be struck")
        what, saving = f"{signal.Signals(number).name} {moment}", is_saving(folder)
        wrong = None if ended.status == expected else f"ended with status {ended.status}"
        wrong = wrong or _damage(folder) or self._resume(folder)
        if wrong is None:
            shutil.rmtree(folder)
        return Outcome(what, wrong is None, wrong or SAME, saving)

    def _resume(self, folder: Path) -> str | None:
        """What is wrong with the run that goes on from there."""
        ended = self._command.train(folder)
        if ended.status:
            return f"went on and ended with status {ended.status}: {_last_line(ended)}"
        if "warning: checkpoint" in ended.said:
            return "found a damaged checkpoint"
        return _difference(folder, self._whole)

    def corrupt(self, number: int) -> Outcome:
        """Damage to a copy of the finished run's folder, or of the interrupted one's."""
        draw = np.random.default_rng([self._seed, 3, number])
        kinds = (_flip, _truncate, _remove, _remove_part, _half_write)
        # Every kind on both, once all kinds have been on one of them.
        finished = bool((number + number // len(kinds)) % 2)
        source, folder = self._whole if finished else self._cut, self._folder / f"damage-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        what = kinds[number % len(kinds)](folder / "checkpoints", draw)
        what = f"{what} of the {'finished' if finished else 'interrupted'} run"
        wrong = self._evaluated(folder) if finished else None
        ended = self._command.train(folder)
        how = "refused in a line"
        if wrong is None and not ended.in_one_line:
            wrong = (
                f"ended with status {ended.status}: {_last_line(ended)}"
                if ended.status or "Traceback" in ended.said
                else _difference(folder, self._whole)
            )
            noticed = "warning: checkpoint" in ended.said
            how = f"{'noticed' if noticed else 'of no consequence'}, {SAME}"
        if wrong is None:
            shutil.rmtree(folder)
        return Outcome(what, wrong is None, wrong or how)

    @functools.cached_property
    def _measured(self) -> str:
        return self._command.evaluate(self._whole).printed

    def _evaluated(self, folder: Path) -> str | None:
        """What is wrong with what the damaged folder's best checkpoint measures."""
        found = self._command.evaluate(folder)
        if found.in_one_line or (found.status, found.printed) == (0, self._measured):
            return None
        return f"evaluate ended with status {found.status} and printed other numbers"


def _last_line(ended: Ended) -> str:
    return shortened((ended.said.splitlines() or ["nothing said"])[-1], 1000)


def _damage(folder: Path) -> str | None:
    """Which checkpoint of a run that was struck is damaged."""
    saved = CheckpointReader(folder / "checkpoints")
    try:
        for step in saved.steps:
            saved.check(step)
    except DamageError as error:
        return f"left a damaged checkpoint: {error}"
    return None


def _difference(folder: Path, whole: Path) -> str | None:
    try:
        found = differences(folder, whole)
    except DamageError as error:
        return f"ended with a damaged checkpoint: {error}"
    return f"ended with another {', '.join(found)}" if found else None


def _steps(checkpoints: Path) -> list[Path]:
    return [checkpoints / str(step) for step in CheckpointReader(checkpoints).steps]


def _file(checkpoints: Path, draw: np.random.Generator) -> Path:
    """A file of a random kind that a checkpoint is read from, often of the newest."""
    steps = _steps(checkpoints)
    steps = steps[-1:] if draw.random() < _NEWEST else steps
    there = [path for step in steps for path in step.rglob("*")]
    # Orbax's marks of success have its folders to speak for them.
    there = [path for path in there if path.is_file() and path.suffix != ".txt"]
    files = sorted(path for path in there if path.stat().st_size)
    # By the part that they are of, for most files are of the same ones.
    kinds = sorted({_kind(checkpoints, path) for path in files})
    kind = kinds[int(draw.integers(len(kinds)))]
    files = [path for path in files if _kind(checkpoints, path) == kind]
    return files[int(draw.integers(len(files)))]


def _kind(checkpoints: Path, path: Path) -> tuple[str, ...]:
    inside = path.relative_to(checkpoints).parts[1:]
    return (inside[0], *inside[1:-1]) if len(inside) > 1 else inside


def _flip(checkpoints: Path, draw: np.random.Generator) -> str:
    file = _file(checkpoints, draw)
    content = bytearray(file.read_bytes())
    place = int(draw.integers(len(content)))
    content[place] ^= 1 << int(draw.integers(8))
    file.write_bytes(content)
    return f"a bit of byte {place} of {file.relative_to(checkpoints)} flipped"


def _truncate(checkpoints: Path, draw: np.random.Generator) -> str:
    file = _file(checkpoints, draw)
    size = file.stat().st_size
    kept = int(draw.integers(size))
    with file.open("r+b") as open_file:
        open_file.truncate(kept)
    return f"{file.relative_to(checkpoints)} cut from {size} to {kept} bytes"


def _remove(checkpoints: Path, draw: np.random.Generator) -> str:
    file = _file(checkpoints, draw)
    file.unlink()
    return f"{file.relative_to(checkpoints)} removed"


def _remove_part(checkpoints: Path, draw: np.random.Generator) -> str:
    steps = _steps(checkpoints)
    steps = steps[-1:] if draw.random() < _NEWEST else steps
    parts = [*steps, *(path for step in steps for path in sorted(step.iterdir()) if path.is_dir())]
    part = parts[int(draw.integers(len(parts)))]
    shutil.rmtree(part)
    return f"{part.relative_to(checkpoints)} removed"


def _half_write(checkpoints: Path, draw: np.random.Generator) -> str:
    last = CheckpointReader(checkpoints).last_step or 0
    half = checkpoints / str(last + 1)
    shutil.copytree(checkpoints / str(last), half)
    files = sorted(path for path in half.rglob("*") if path.is_file())
    written = int(draw.integers(len(files)))
    for file in draw.permutation(np.array(files, object))[written:]:
        file.unlink()
    return f"{half.name} written in part, {written} of {len(files)} files"
