"""A training run as a process of its own: started, struck at a moment, compared with another."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.runs.checkpoints import arrays
from mtl_jax.runs.checkpoints.reader import BEST, CheckpointReader
from mtl_jax.runs.workdir import Workdir

# As Orbax names the folder of a checkpoint that it is writing.
_UNFINISHED = "orbax-checkpoint-tmp"
# Short against anything that is waited for here.
_LOOK_SECONDS = 0.002


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a run is struck.

    Attributes:
        seconds: So long after its start, or after the save began.
        save: Which of its saves is waited for, from 1; None where none is.
    """

    seconds: float
    save: int | None = None

    def __str__(self) -> str:
        after = "its start" if self.save is None else f"it began its save {self.save}"
        return f"{self.seconds:.2f} s after {after}"


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process has ended.

    Attributes:
        status: As of ``subprocess``: negative is a signal.
        said: What it has written on standard error.
        printed: What it has written on standard output.
    """

    status: int
    said: str
    printed: str

    @property
    def in_one_line(self) -> bool:
        """Whether it has told of a user's mistake as a command should."""
        told = self.said.startswith("error: ") or "\nerror: " in self.said
        return self.status == 2 and told and "Traceback" not in self.said


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long an uninterrupted run takes.

    Attributes:
        seconds: From its start to its end.
        save_seconds: Of one save, from its start in the background to its end.
        saves: How many it makes.
    """

    seconds: float
    save_seconds: float
    saves: int


class Command:
    """``python -m mtl_jax`` in processes of its own.

    Args:
        flags: Of ``train``, but for ``--workdir``.
        logs: A folder for what the processes say.
        start: Starts a process, as ``subprocess.Popen``.
    """

    def __init__(
        self, flags: Sequence[str], logs: Path, start: Callable[..., Any] = subprocess.Popen
    ):
        self._flags, self._logs, self._start = list(flags), logs, start
        logs.mkdir(parents=True)
        self._started = 0

    def train(self, folder: Path, *, signal: int = 0, moment: Moment | None = None) -> Ended:
        """Trains to the end, or until the signal at that moment ends it."""
        with self._process(["train", *self._flags, f"--workdir={folder}"]) as process:
            if moment is not None and _wait(process, folder, moment):
                process.send_signal(signal)
        return self._ended(process)

    def pace(self, folder: Path) -> Pace:
        """Trains to the end, and watches how long that takes.

        Raises:
            UserError: The run does not come to an end.
        """
        started, seen = time.monotonic(), {}
        with self._process(["train", *self._flags, f"--workdir={folder}"]) as process:
            while process.poll() is None:
                for name in _unfinished(folder):
                    now = time.monotonic()
                    seen[name] = seen.get(name, (now, now))[0], now
                time.sleep(_LOOK_SECONDS)
        ended = self._ended(process)
        if ended.status:
            raise UserError(
                f"the uninterrupted run ended with status {ended.status} "
                f"({(ended.said.splitlines() or [''])[-1]}): correct the flags after --"
            )
        if not seen:
            raise UserError("the run was never seen to save: make it save more often or longer")
        spans = [last - first for first, last in seen.values()]
        return Pace(time.monotonic() - started, sum(spans) / len(spans), len(spans))

    def evaluate(self, folder: Path) -> Ended:
        """Measures the folder's best checkpoint on its validation split."""
        with self._process(["evaluate", f"--workdir={folder}", "--split=validation"]) as process:
            pass
        return self._ended(process)

    def _process(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        self._started += 1
        out, err = self._files()
        with out.open("wb") as printed, err.open("wb") as said:
            return self._start(
                [sys.executable, "-m", "mtl_jax", *arguments], stdout=printed, stderr=said
            )

    def _files(self) -> tuple[Path, Path]:
        return tuple(self._logs / f"{self._started}.{name}" for name in ("out", "err"))  # pyright: ignore[reportReturnType]

    def _ended(self, process: subprocess.Popen[bytes]) -> Ended:
        printed, said = (file.read_text(encoding="utf-8") for file in self._files())
        return Ended(process.returncode, said, printed)


def _wait(process: subprocess.Popen[bytes], folder: Path, moment: Moment) -> bool:
    """Waits for the moment; False where the process ends before."""
    seen: set[str] = set()
    started = time.monotonic()
    waits_for_save = moment.save is not None
    while process.poll() is None:
        if waits_for_save:
            seen.update(_unfinished(folder))
            if len(seen) < (moment.save or 0):
                time.sleep(_LOOK_SECONDS)
                continue
            started, waits_for_save = time.monotonic(), False
        if time.monotonic() - started >= moment.seconds:
            return True
        time.sleep(_LOOK_SECONDS)
    return False


def _unfinished(folder: Path) -> list[str]:
    """The checkpoints that are being written, or have been when the process was killed."""
    try:
        names = [path.name for path in (folder / "checkpoints").iterdir()]
    except FileNotFoundError:
        return []
    return [name for name in names if _UNFINISHED in name]


def is_saving(folder: Path) -> bool:
    """Whether a run that was killed was saving then."""
    return bool(_unfinished(folder))


def without_times(value: Any) -> Any:
    """A result or log without what depends on the clock."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "second" not in k}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def _known(folder: Path) -> Iterator[tuple[str, Any]]:
    """What a finished run has left, but for times; its arrays by their digests, each checked."""
    saved = CheckpointReader(folder / "checkpoints")
    last = saved.last_step
    yield "the last step", last
    # Whether the best one has a checkpoint of its own depends on when there was a save.
    yield "the best", arrays.digest(saved.restore_best() or {})
    for step in saved.steps:
        if step not in (last, saved.best_step):
            continue
        saved.check(step)
        manifest = saved.manifest(step)
        if step != last:
            continue
        for part, digest in manifest.digests.items():
            if part != BEST:
                yield f"the {part} at step {step}", digest
        yield f"the best up to step {step}", manifest.best
        progress = manifest.progress["phase_progress"]
        # Of the kept activations the seconds are said.
        yield f"the progress at step {step}", without_times(progress | {"features": None})
        yield f"the losses up to step {step}", without_times(manifest.progress["meter"])
    yield "metrics.jsonl", without_times(read_lines(folder / "metrics.jsonl"))
    yield "certificate.json", Workdir(folder).certificate()


def differences(folder: Path, whole: Path) -> list[str]:
    """In what a finished run differs from another, but for times.

    Raises:
        DamageError: A checkpoint of theirs is damaged.
    """
    found, wanted = dict(_known(folder)), dict(_known(whole))
    names = [*wanted, *(name for name in found if name not in wanted)]
    return [name for name in names if json.dumps(found.get(name)) != json.dumps(wanted.get(name))]
