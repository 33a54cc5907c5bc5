"""How fast is this, beside plain PyTorch and transformers on the same sentences?

    python -m experiments.benchmarks --workdir DIR

Each side has a worker process of its own, so that neither's threads disturb the other, and
the two run in turn. The comparison needs PyTorch (``pip install .[torch]``); the rows that
do not are measured without it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal

import tyro

from experiments.benchmarks.cases import CASES, Case, Job
from experiments.benchmarks.judges import OURS, THEIRS, Outcome
from experiments.benchmarks.table import Circumstances, build, print_table
from experiments.benchmarks.workers import MEASUREMENTS, Workers, device, measure
from mtl_jax.config.model import DEFAULT_BACKBONE
from mtl_jax.config.optimizer import HEAD_LEARNING_RATE
from mtl_jax.config.train import DataConfig, TrainConfig
from mtl_jax.core.command_line import guarded, one_line, parse
from mtl_jax.core.errors import UserError
from mtl_jax.core.paths import expanded
from mtl_jax.studies.environment import processor
from mtl_jax.studies.report.render import to_markdown

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers")

# Two batches, enough to have run every part of a training once.
_WARM_UP = 64

# Runnable threads, averaged over the last minute, before anything is measured.
_BUSY = 0.5

# The measurements of the other side, and what they need.
_NEEDED = {"pytorch": ("torch",), "sentence_transformers": ("torch", "sentence_transformers")}

_REMEDIES = {
    "torch": "PyTorch is not installed: pip install .[torch]",
    "sentence_transformers": (
        "sentence-transformers is not installed: pip install sentence-transformers"
    ),
}

_LIMITS = ("max_train_examples", "max_validation_examples", "max_test_examples")
_DATA = DataConfig(max_validation_examples=1024, max_test_examples=1024)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measure the speed of training, beside plain PyTorch, and write a table."""

    workdir: str
    """folder for benchmark.md and benchmark.jsonl, which are replaced"""
    rows: tuple[str, ...] = tuple(CASES)
    """rows to measure"""
    repeats: int = 3
    """how often each row is measured; the table shows medians"""
    sentences_scale: float = 1.0
    """factor on the number of training sentences of every row"""
    backbone: str = DEFAULT_BACKBONE
    """pre-trained checkpoint: a folder, or a name on the Hugging Face hub"""
    batch_size: int = 32
    """examples per step"""
    data: DataConfig = _DATA
    gpu: bool = False
    """measure steps on one GPU instead of the rows; without a GPU they are listed as not run"""
    gpu_shapes: Annotated[Literal["full", "tiny"], tyro.conf.Suppress] = "full"

    def __post_init__(self) -> None:
        if unknown := [name for name in self.rows if name not in CASES]:
            raise UserError(f"--rows {unknown[0]}: no such row: use some of {', '.join(CASES)}")
        if not self.rows:
            raise UserError("--rows is empty: name at least one")
        for name in ("repeats", "sentences_scale"):
            if not getattr(self, name) > 0:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} {getattr(self, name)} must be above 0")
        if self.data.max_train_examples is not None:
            raise UserError("--max-train-examples is set by each row: use --sentences-scale")

    def config(self, job: Job) -> TrainConfig:
        """The training that both sides run for ``job``."""
        sentences = max(round(job.sentences * self.sentences_scale), 1)
        return TrainConfig(
            backbone=self.backbone,
            data=dataclasses.replace(self.data, max_train_examples=sentences),
            pooling="mean",
            dtype=job.dtype,
            epochs=job.epochs,
            # The other side has no sweep that would choose it.
            head_learning_rate=HEAD_LEARNING_RATE,
            batch_size=self.batch_size,
            parallel="jit",
            workdir=self.workdir,
            checkpoint_every=job.checkpoint_every,
            scenario=None if job.recipe else job.scenario,
            recipe=job.scenario if job.recipe else None,
        )


class SkippedError(Exception):
    """A row that can't be measured here; the message says why, and what would help."""


class Session:
    """One call of the benchmark.

    Attributes:
        records: The lines of ``benchmark.jsonl`` so far.
        devices: What jax computes on, in words.
    """

    def __init__(self, settings: Benchmark, workers: Workers):
        from mtl_jax.core.json_files import rewrite_lines

        self.records: list[dict[str, Any]] = []
        self._settings, self._workers = settings, workers
        self._platform, self.devices = workers.call(OURS, device)
        self._measured: dict[Job, list[dict[str, Any]]] = {}
        self._file = expanded(settings.workdir) / "benchmark.jsonl"
        rewrite_lines(self._file, [])

    def outcomes(self, name: str) -> list[Outcome]:
        """Measures a row and judges it.

        Raises:
            SkippedError: It can't be measured here.
        """
        case = CASES[name]
        jobs = self._available(case)
        todo = [(label, job) for label, job in jobs if job not in self._measured]
        repeats = self._settings.repeats if case.repeated else 1
        for _, job in todo if case.repeated else ():
            self._warm_up(job)
        samples: dict[Job, list[dict[str, Any]]] = {job: [] for _, job in todo}
        for repeat in range(repeats):
            for label, job in todo:
                samples[job].append(self._run(name, label, job, repeat))
        self._measured |= samples
        return case.judge({label: self._measured[job] for label, job in jobs})

    def _available(self, case: Case) -> list[tuple[str, Job]]:
        if case.platform not in (None, self._platform):
            raise SkippedError(
                f"its goal is one of a {case.platform}, and jax runs on {self._platform}"
            )
        jobs = []
        for label, job in case.jobs:
            if job.measurement not in MEASUREMENTS:
                raise SkippedError("this version has no measurement of it")
            needed = _NEEDED.get(job.measurement, ())
            lacking = next((p for p in needed if not importlib.util.find_spec(p)), None)
            if lacking is None:
                jobs.append((label, job))
            elif label not in case.optional:
                raise SkippedError(_REMEDIES[lacking])
        return jobs

    def _warm_up(self, job: Job) -> None:
        """Loads libraries and starts threads; a process that is made for one job is spared it.

        Of what starts processes of its own it fills the caches of texts and programs.
        """
        if job.fresh or job.measurement == "peak":
            return
        config = self._settings.config(dataclasses.replace(job, epochs=1))
        if job.whole:
            self._call(job, config)
            return
        limits = dict.fromkeys(_LIMITS, _WARM_UP)
        data = dataclasses.replace(config.data, **limits)
        self._call(job, dataclasses.replace(config, data=data))

    def _call(self, job: Job, config: TrainConfig) -> dict[str, Any]:
        call = self._workers.call_fresh if job.fresh else self._workers.call
        arguments = (job.measurement, config, job, self._platform)
        return call(_side(job), measure, *arguments)

    def _run(self, name: str, label: str, job: Job, repeat: int) -> dict[str, Any]:
        from mtl_jax.core.console import say
        from mtl_jax.core.json_files import append_line

        sample = self._call(job, self._settings.config(job))
        seconds = f": {sample['seconds']:.2f} s" if "seconds" in sample else ""
        say(f"{name}, {label}, repeat {repeat + 1}{seconds}")
        record = {"row": name, "label": label, "side": _side(job), "repeat": repeat}
        self.records.append({**record, "job": dataclasses.asdict(job), **sample})
        append_line(self._file, self.records[-1])
        return sample


def _side(job: Job) -> str:
    return THEIRS if job.measurement in _NEEDED else OURS


def _circumstances(settings: Benchmark, devices: str, load: float, command: str) -> Circumstances:
    packages = [*_PACKAGES, *(["torch"] if importlib.util.find_spec("torch") else [])]
    return Circumstances(
        command=command,
        machine=f"{processor()}, {os.cpu_count()} cores, {devices}",
        load=load,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in packages} | {"python": platform.python_version()},
        repeats=settings.repeats,
        data=" and ".join(origin.name for origin in settings.data.origins),
        backbone=settings.backbone,
        batch_size=settings.batch_size,
    )


def run(settings: Benchmark, command: str) -> int:
    """Measures the rows one by one, and writes what they gave.

    Args:
        settings: What to measure.
        command: How it was called, for the table's page.

    Returns:
        How many rows failed.

    Raises:
        UserError: Checkpoint, data or folder are at fault.
    """
    from mtl_jax.core.console import say
    from mtl_jax.data.corpus import load_corpus
    from mtl_jax.models.pretrained import resolve_backbone

    load = os.getloadavg()[0]
    data = settings.data.absolute()
    load_corpus(data)
    folder = resolve_backbone(settings.backbone)
    workdir = expanded(settings.workdir).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} can't be used ({error.strerror}): name another folder"
        ) from error
    resolved = dataclasses.replace(
        settings, data=data, backbone=str(folder.absolute()), workdir=str(workdir)
    )
    outcomes: list[Outcome] = []
    notes: list[str] = []
    failed = 0
    if load > _BUSY:
        notes.append(
            f"The machine had other work to do (load {load:.1f} at the start). That slows PyTorch, "
            "whose threads wait for each other, more than jax: measure again on an idle machine."
        )
        say(notes[-1])
    with Workers() as workers:
        session = Session(resolved, workers)
        for name in dict.fromkeys(settings.rows):
            try:
                outcomes += session.outcomes(name)
            except SkippedError as reason:
                notes.append(f"`{name}` was skipped: {reason}")
                say(notes[-1])
            except Exception as error:  # noqa: BLE001  (one row must not take the others with it)
                failed += 1
                notes.append(f"`{name}` failed: {one_line(error)}")
                say(notes[-1])
    circumstances = _circumstances(settings, session.devices, load, command)
    page = build(outcomes, notes, session.records, circumstances)
    (workdir / "benchmark.md").write_text(to_markdown(page), encoding="utf-8")
    print_table(outcomes, notes)
    say(f"the table is {workdir / 'benchmark.md'}")
    return failed


def run_gpu(settings: Benchmark) -> int:
    """Measures the steps on one GPU, and prints the table; how many rows failed."""
    from experiments.benchmarks.gpu import outcomes
    from mtl_jax.core.console import say

    found, notes, failed = outcomes(settings.gpu_shapes)
    for note in notes:
        say(note.replace("`", ""))
    print_table(found, [])
    return failed


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit status."""
    return guarded(_main, argv)


def _main(argv: Sequence[str]) -> None:
    settings = parse(Benchmark, argv, "python -m experiments.benchmarks", __doc__ or "")
    command = shlex.join(["python", "-m", "experiments.benchmarks", *argv])
    if run_gpu(settings) if settings.gpu else run(settings, command):
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
