"""Trainings as whole processes, from the command to its end, and what a second start takes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.config.files import flags_of
from mtl_jax.config.train import TrainConfig

# A step is logged every ten: the first one after this checkpoint is.
_SAVED = 9
_LOOK_SECONDS = 0.01


def whole_run(config: TrainConfig) -> dict[str, Any]:
    """Trains by the command line, in a new folder; see ``_timed`` for what is added."""
    with _folder(config) as folder:
        clock = _timed(_command(config, folder / "run"))
        return {**_result(folder / "run"), **clock}


def pytorch_whole_run(config: TrainConfig, device: str) -> dict[str, Any]:
    """The same in plain PyTorch, by a command line of its own."""
    with _folder(config) as folder:
        settings, result = folder / "settings.json", folder / "result.json"
        settings.write_text(json.dumps(dataclasses.asdict(config)), encoding="utf-8")
        module = "experiments.benchmarks.pytorch_baseline"
        paths = map(str, (settings, folder / "best.pt", result))
        clock = _timed([sys.executable, "-m", module, device, *paths])
        return {**json.loads(result.read_text(encoding="utf-8")), "compile_seconds": 0.0, **clock}


def start_again(config: TrainConfig) -> dict[str, Any]:
    """Seconds until the command of a finished run has said so, and until it was finished."""
    with _folder(config) as folder:
        command = _command(config, folder / "run")
        first = _timed(command)
        return {**_result(folder / "run"), **_timed(command), "first_seconds": first["seconds"]}


def go_on(config: TrainConfig) -> dict[str, Any]:
    """Seconds until a run that was killed has taken its next step, and those of the first start.

    The latter are until the step that the first checkpoint is of.
    """
    config = dataclasses.replace(config, checkpoint_every=_SAVED)
    with _folder(config) as folder:
        run = folder / "run"
        command = _command(config, run)
        first = _seconds_until(command, lambda _: (run / "checkpoints" / str(_SAVED)).is_dir())
        seconds = _seconds_until(command, lambda began: _has_stepped(run, began))
    return {"seconds": seconds, "first_seconds": first}


@contextlib.contextmanager
def _folder(config: TrainConfig) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=config.workdir) as folder:
        yield Path(folder)


def _command(config: TrainConfig, folder: Path) -> list[str]:
    """The command line of a training; what frozen layers compute is not found again."""
    own = {"workdir": str(folder), "cache_folder": f"{folder}-cache"}
    settings = json.loads(json.dumps(dataclasses.asdict(config) | own))
    return [sys.executable, "-m", "mtl_jax", "train", *flags_of(settings, TrainConfig)]


def _timed(command: Sequence[str]) -> dict[str, Any]:
    """Seconds of a command by the clock and of processors, and the most memory it had."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_bytes": 1024 * after.ru_maxrss,
    }


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])


def _has_stepped(run: Path, began: float) -> bool:
    """Whether a step has been logged since."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    records = (json.loads(line) for line in lines if line.endswith("\n"))
    return any(each["event"] == "step" and each["unix_seconds"] >= began for each in records)


def _seconds_until(command: Sequence[str], reached: Callable[[float], bool]) -> float:
    """Seconds from the start of a command until something is so; it is killed then.

    Args:
        command: The command.
        reached: Whether it is so, of the time of day at the start.
    """
    began, clock = time.time(), time.perf_counter()
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        while not reached(began):
            if process.poll() is not None:
                said = process.stderr.read().decode() if process.stderr else ""
                raise RuntimeError(f"status {process.returncode}: {said.splitlines()[-1:]}")
            time.sleep(_LOOK_SECONDS)
        seconds = time.perf_counter() - clock
        process.kill()
    return seconds
