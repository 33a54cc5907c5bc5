"""Shows a run's ``metrics.jsonl`` elsewhere: TensorBoard's event files, Weights & Biases.

Both are fed with its lines and with nothing else. After a restart they are told the lines that
are left of it from the first one on, so that no step is in them twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mtl_jax.config.train import TrainConfig
from mtl_jax.core import distributed, runtime
from mtl_jax.core.atomic_write import atomic_write
from mtl_jax.core.errors import UserError, cannot_write, first_line
from mtl_jax.core.imported import import_function

# Seconds between two writes of the event file, so that a step does not wait for the disk.
_FLUSH_EVERY = 10.0

# Counts of texts, which are no curve.
_LEFT_OUT = ("examples", "per_class")


class MetricWriter(Protocol):
    """Is told the lines of ``metrics.jsonl``."""

    def log(self, line: int, record: Mapping[str, Any]) -> None:
        """Takes a line.

        Args:
            line: Its number, from 0; after a restart they begin with 0 again.
            record: What it says.

        Raises:
            UserError: It can't be written.
        """
        ...

    def close(self) -> None:
        """Waits until everything is where it belongs."""
        ...


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a line of ``metrics.jsonl`` that make a curve, by tag.

    Args:
        record: A line; of an event that has no such numbers, nothing comes of it.
    """
    found: dict[str, Any] = {}
    if record["event"] == "step":
        found = {f"train/{task}_loss": loss for task, loss in record["loss"].items()}
        for name in ("grad_norm", "examples_per_second"):
            found[f"train/{name}"] = record[name]
        for name, tag in (("learning_rates", "learning_rate"), ("task_weights", "task_weight")):
            found |= {f"train/{tag}/{key}": value for key, value in record.get(name, {}).items()}
        found["train/phase"] = record["phase"]
    elif record["event"] == "epoch":
        found = {f"train/{task}_mean_loss": v for task, v in record["train_loss"].items()}
        found |= {"train/epoch": record["epoch"], "train/seconds": record["seconds"]}
        found |= dict(_flat("validation", record["validation"]))
        found |= {f"drift/{task}": value for task, value in record.get("drift", {}).items()}
    elif record["event"] == "result":
        # What is measured once, at the end, and of the best checkpoint.
        found = dict(_flat("test", record["test"] or {}))
        found |= dict(_flat("result/validation", record["validation"]))
        found |= dict(_flat("result/train", record["train"]))
    return {tag: value for tag, value in found.items() if value is not None}


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The numbers in nested dicts, by the path to each."""
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, inner in value.items():
        if name not in _LEFT_OUT:
            yield from _flat(f"{path}/{name}", inner)


class TensorBoard:
    """One event file in a folder; those that earlier starts have left there are emptied.

    It is written by whoever logs. The library's own writer has a thread for that, which a full
    disk ends, and the run would then wait for it without an end.
    """

    def __init__(self, folder: Path):
        # What else the library can show needs these, and it imports them wherever they are.
        with runtime.without("torch", "boto3"):
            library: Any = importlib.import_module("tensorboardX")
            self._events: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        self._folder, self._flushed = folder, time.monotonic()
        # Readers take files in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        with _written(folder):
            folder.mkdir(exist_ok=True)
            for old in folder.glob("events.out.tfevents.*"):
                # A TensorBoard that was reading one goes on to the next only if it is there.
                if old.stat().st_size:
                    os.truncate(old, 0)
                else:
                    old.unlink()
            self._writer = library.RecordWriter(str(folder.absolute() / name))
        started = self._events.SessionLog(status=self._events.SessionLog.START)
        # And it forgets what it has read when it comes to this.
        for first in ({"file_version": "brain.Event:2"}, {"step": 0, "session_log": started}):
            self._write(wall_time=time.time(), **first)

    def log(self, line: int, record: Mapping[str, Any]) -> None:
        """See ``MetricWriter``."""
        del line
        values = [{"tag": tag, "simple_value": value} for tag, value in scalars(record).items()]
        if values:
            when = record.get("unix_seconds", time.time())
            self._write(wall_time=when, step=record["step"], summary={"value": values})
        if record["event"] != "step" or time.monotonic() - self._flushed > _FLUSH_EVERY:
            with _written(self._folder):
                self._writer.flush()
            self._flushed = time.monotonic()

    def _write(self, **fields: Any) -> None:
        with _written(self._folder):
            self._writer.write(self._events.Event(**fields).SerializeToString())

    def close(self) -> None:
        """See ``MetricWriter``."""
        # What has not been written by now is in metrics.jsonl, and has been told.
        with contextlib.suppress(OSError):
            self._writer.close()


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from error


class WeightsAndBiases:
    """A run of Weights & Biases, the same one after a restart.

    Its own count of steps is that of the lines, which never goes back; curves are drawn over
    ``step``. The server knows how many lines it has: those are not sent again. Without a
    server each start leaves a folder with all lines, of which the newest is to be synced.

    Args:
        folder: The run's; what the package writes goes to ``wandb`` in it.
        project: Of Weights & Biases.
        config: The run's settings.
    """

    def __init__(self, folder: Path, project: str, config: TrainConfig):
        wandb: Any = importlib.import_module("wandb")
        try:
            self._run = wandb.init(
                project=project,
                id=_lasting_id(folder / "wandb"),
                resume="allow",
                dir=str(folder.absolute()),
                name=folder.absolute().name,
                # So that the seeds of a scenario can be drawn as one.
                group=config.name,
                config=dataclasses.asdict(config),
                # A process may train several runs, one after the other or at once.
                reinit="create_new",
                settings=wandb.Settings(console="off"),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"--wandb {project} fails ({first_line(error)}): log in with `wandb login`, set "
                "WANDB_MODE=offline, or leave the flag out"
            ) from error
        self._run.define_metric("*", step_metric="step")
        self._sent, self._done = self._run.starting_step, False

    def log(self, line: int, record: Mapping[str, Any]) -> None:
        """See ``MetricWriter``."""
        values = scalars(record)
        if values and line >= self._sent:
            self._run.log({"step": record["step"], **values}, step=line)
        self._done = record["event"] == "result"

    def close(self) -> None:
        """See ``MetricWriter``."""
        self._run.finish(exit_code=0 if self._done else 1)


class Callback:
    """A user's function that is called with every line.

    Args:
        path: Its import path.

    Raises:
        UserError: It can't be imported, or called.
    """

    def __init__(self, path: str):
        self._path, self._function = path, import_function(path, "--callbacks")

    def log(self, line: int, record: Mapping[str, Any]) -> None:
        """See ``MetricWriter``."""
        del line
        try:
            self._function(dict(record))
        except Exception as error:
            raise UserError(
                f"--callbacks {self._path} failed with {type(error).__name__} "
                f"({first_line(error)}): correct it, and run the command again to resume"
            ) from error

    def close(self) -> None:
        """See ``MetricWriter``."""


def _lasting_id(folder: Path) -> str:
    """The identity that Weights & Biases has for a run, made once."""
    file = folder / "mtl_jax_run_id"
    with _written(folder):
        if not file.exists():
            folder.mkdir(exist_ok=True)
            with atomic_write(file) as draft:
                draft.write_text(secrets.token_hex(8), encoding="ascii")
        return file.read_text(encoding="ascii")


def open_metric_writers(folder: Path, config: TrainConfig) -> Sequence[MetricWriter]:
    """What a run's lines are shown in; of several processes the first one shows them.

    Args:
        folder: The run's.
        config: Its settings.

    Raises:
        UserError: The folder can't be written, or Weights & Biases refuses.
    """
    if not distributed.is_main():
        return ()
    remote = [WeightsAndBiases(folder, config.watch.wandb, config)] if config.watch.wandb else []
    called = [Callback(path) for path in config.callbacks]
    return [*called, *remote, TensorBoard(folder / "tensorboard")]
