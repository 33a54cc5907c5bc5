"""One of the runs that are trained at once: what it has to itself, from folder to result."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain

from mtl_jax import freeze as freezing
from mtl_jax.checkpoint import Checkpoints
from mtl_jax.config import TASKS
from mtl_jax.console import say
from mtl_jax.data.batches import HostBatch, TextSet, train_batches
from mtl_jax.errors import UserError
from mtl_jax.evaluate import majority_baseline, neighbour_probe
from mtl_jax.freeze import Freeze, Params
from mtl_jax.inputs import Split
from mtl_jax.meter import Meter
from mtl_jax.metrics import mean_macro_f1
from mtl_jax.run import Run
from mtl_jax.step import Program, TrainState
from mtl_jax.workdir import Workdir, write_json

_LOG_EVERY = 10


class Member:
    """A run and its folder; what goes wrong with it under ``guarded`` ends it alone.

    Attributes:
        run: Its parameters, partition and plan.
        checkpoints: Those in its folder, once that is open.
        data: Its batches, once it has begun.
        meter: Its losses and seconds, once it has begun.
        outcome: Its result, or why there is none; None while it is under way.
    """

    checkpoints: Checkpoints
    data: grain.DatasetIterator[HostBatch]
    meter: Meter

    def __init__(self, run: Run):
        self.run = run
        self.outcome: dict[str, Any] | UserError | None = None
        self._open = contextlib.ExitStack()
        self._workdir = self._open.enter_context(contextlib.closing(Workdir(run.config.workdir)))

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Makes a ``UserError`` the outcome."""
        try:
            yield
        except UserError as error:
            # Without the traceback, whose frames hold the arrays of the training.
            self.outcome = UserError(str(error))

    def open(self) -> None:
        """Takes the folder; the result of a run that was finished there is the outcome.

        Raises:
            UserError: The folder is in use, belongs to another run, or can't be written.
        """
        self._workdir.claim(self.run.record())
        if result := self._workdir.result():
            say(f"{self._workdir.path} is done: the result is the last line of its metrics.jsonl")
            self.outcome = result
            return
        self._workdir.keep_tokenizer(self.run.inputs.reader.tokenizer)
        checkpoints = Checkpoints(self._workdir.checkpoints)
        self.checkpoints = self._open.enter_context(contextlib.closing(checkpoints))

    def close(self) -> None:
        """Waits for the background work and lets others have the folder."""
        self._open.close()

    def join(self, members: int, feature_seconds: float, compiled_before: float) -> None:
        """From here on its time is shared by so many that have begun, itself among them.

        Args:
            members: How many.
            feature_seconds: What computing the training texts' frozen vectors has taken for
                all of them; a run that goes on has booked it before.
            compiled_before: The evaluation's ``compile_seconds`` before any of it was theirs.
        """
        self._share, self._compiled_before = 1 / members, compiled_before
        if self.checkpoints.last_step is None:
            self.book(feature_seconds, 0.0)

    def begin(self, program: Program, texts: TextSet) -> tuple[TrainState, Params]:
        """Goes on from the last checkpoint, where there is one.

        Args:
            program: What its steps are compiled for.
            texts: The training texts.

        Returns:
            The state and the frozen partition to start with.

        Raises:
            UserError: The checkpoint is damaged.
        """
        run, config = self.run, self.run.config
        trainable, frozen = run.freeze.split(run.params)
        self._frozen_before = freezing.digest(frozen)
        self.data = train_batches(texts, run.plan, config.seed, 0, run.total_steps)
        state = program.init(trainable, config.seed)
        last = self.checkpoints.last_step
        self._workdir.rewind(last)
        if last is None:
            self.meter = Meter()
            return state, frozen
        params, state, progress = self.checkpoints.restore(last, state, self.data, run.freeze)
        self.meter = Meter(progress["meter"])
        return state, run.freeze.split(params)[1]

    def book(self, seconds: float, compile_seconds: float) -> None:
        """Takes its share of what steps of all members took, and of compiling them."""
        self.meter.book(seconds * self._share, compile_seconds * self._share)

    def add(self, step: int, metrics: Callable[[], Mapping[str, Any]], batch: HostBatch) -> None:
        """Takes in a step on ``batch``; see ``Meter.add``."""
        self.meter.add(step, metrics, int((batch["example"] >= 0).sum()))
        if step % _LOG_EVERY == 0:
            rate = {"examples_per_second": self.meter.rate}
            self._workdir.log({"event": "step", **self.meter.read(), **rate})

    def end_epoch(
        self, state: TrainState, frozen: Params, epoch: int, step: int, validation: Split
    ) -> None:
        """Measures and saves what an epoch has led to.

        Args:
            state: Its state, one copy.
            frozen: Its frozen partition, one copy.
            epoch: Which epoch has ended, from 1; 0 where nothing is trained.
            step: Steps done.
            validation: The split to measure on.

        Raises:
            UserError: The loss there is not finite, or nothing can be written.
        """
        run, evaluator = self.run, self.run.evaluator
        params = evaluator.runner.replicate(Freeze.merge(state.trainable, frozen))
        metrics = evaluator.metrics(params, validation, run.inputs.classes)
        for task in TASKS:
            if not math.isfinite(metrics[task]["loss"] or 0.0):
                raise UserError(
                    f"the {task} loss on the validation split is not finite after step {step}: "
                    "lower the learning rates; the last checkpoint is kept"
                )
        seconds = self.meter.train_seconds
        record = {"event": "epoch", "epoch": epoch, "step": step, "seconds": seconds}
        losses = {"train_loss": self.meter.mean_losses(), "validation": metrics}
        self._workdir.log({**record, **losses})
        say(f"{self._name()}epoch {epoch} of {run.config.epochs}: {self._words(metrics)}")
        self.meter.reset()
        self.save(state, frozen, mean_macro_f1(metrics))

    def save(self, state: TrainState, frozen: Params, score: float | None) -> None:
        """Leaves a checkpoint; see ``Checkpoints.save``."""
        params = Freeze.merge(state.trainable, frozen)
        progress = {"meter": self.meter.state()}
        self.checkpoints.save(params, state, self.data, progress, score)

    def certify(self, state: TrainState, frozen: Params) -> None:
        """Leaves ``certificate.json``, when all checkpoints are written."""
        self.checkpoints.wait()
        params = Freeze.merge(state.trainable, frozen)
        freeze, before = self.run.freeze, self._frozen_before
        certificate = freezing.certificate(freeze, params, state.opt_state, before)
        write_json(self._workdir.path / "certificate.json", certificate)

    def finish(self, training: Split, test: Split | None) -> None:
        """Measures the best checkpoint on both splits, which makes the result."""
        run, config = self.run, self.run.config
        evaluator, classes = run.evaluator, run.inputs.classes
        best = self.checkpoints.best_step or 0
        params = evaluator.runner.replicate(self.checkpoints.restore_params(best))
        epochs = [record for record in self._workdir.records() if record["event"] == "epoch"]
        chosen = next(record for record in epochs if record["step"] == best)
        certificate = self._workdir.certificate()
        measured = {
            "test": test and evaluator.metrics(params, test, classes),
            "validation": chosen["validation"],
            "train": evaluator.metrics(params, training, classes),
        }
        compiling = (evaluator.compile_seconds - self._compiled_before) * self._share
        result = {
            "event": "result",
            "step": epochs[-1]["step"],
            "scenario": config.scenario,
            "seed": config.seed,
            "epochs": config.epochs,
            "best_epoch": chosen["epoch"],
            **measured,
            "train_seconds": self.meter.train_seconds if run.freeze.groups else 0.0,
            "compile_seconds": self.meter.compile_seconds + compiling,
            "examples_per_second": self.meter.rate,
            "train_examples": len(training.texts),
            "test_examples": len(test.texts) if test else 0,
            "trainable_parameters": certificate["trainable_parameters"],
            "total_parameters": sum(part["parameters"] for part in certificate["labels"].values()),
            "optimizer_state_bytes": certificate["optimizer_state_bytes"],
            "frozen_digest_unchanged": certificate["frozen_digest_unchanged"],
        }
        if not run.freeze.groups:
            asked = test or run.split("validation")
            result["probe"] = neighbour_probe(training, asked, classes)
            result["chance"] = majority_baseline(training, asked, classes)
        self._workdir.log(result)
        self.outcome = result

    def _name(self) -> str:
        return f"seed {self.run.config.seed}, " if self._share < 1 else ""

    def _words(self, metrics: dict[str, Any]) -> str:
        words = []
        for task in TASKS:
            if metrics[task]["examples"]:
                accuracy, f1 = metrics[task]["accuracy"], metrics[task]["macro_f1"]
                words.append(f"{task} accuracy {accuracy:.3f}, macro-F1 {f1:.3f}")
        rate = f"{self.meter.rate:.0f} examples/s" if self.meter.rate else "nothing to train"
        return f"validation {'; '.join(words)} ({rate})"
