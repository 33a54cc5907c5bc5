"""One of the runs that are trained at once: what it has to itself, from folder to result."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import grain
import numpy as np

from mtl_jax.core import distributed
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import write_json
from mtl_jax.data.batches import HostBatch, train_batches
from mtl_jax.freezing import partition as freezing
from mtl_jax.freezing.partition import Params, Partition
from mtl_jax.runs import results
from mtl_jax.runs.checkpoints import frozen_leaves
from mtl_jax.runs.checkpoints.manager import CheckpointManager
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.flops import flops_record
from mtl_jax.runs.head_drift import Reference, drift_warning, reference
from mtl_jax.runs.label_updates import updates_by_task
from mtl_jax.runs.layer_roles import layer_roles
from mtl_jax.runs.monitoring.metric_writers import open_metric_writers
from mtl_jax.runs.monitoring.train_metrics import Meter
from mtl_jax.runs.nonfinite import keep, validate
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.phase_transition import Snapshot, at_place, close_phase, next_phase
from mtl_jax.runs.progress import PhaseProgress, score
from mtl_jax.runs.recovery import batches_from, depended_on, done_before, open_checkpoints, recover
from mtl_jax.runs.run_config import identity
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.metrics import mean_score
from mtl_jax.training.program import TrainState

_LOG_EVERY = 10

Measured = tuple[Mapping[str, Any], Mapping[str, np.ndarray]]
"""The metrics and the logits of a split."""


class SeedRun:
    """A run and its folder; what goes wrong with it under ``guarded`` ends it alone.

    Args:
        run: In its first phase.
        stack: Has what is open of it, and lets others have the folder.
        observe: As of ``train_seeds``.
        outdone: As of ``train_seeds``.

    Attributes:
        run: Its parameters, partition and plan in its present phase.
        progress: Where it is in its phases, once the folder is open.
        checkpoints: Those in its folder, once that is open.
        data: Its batches, once the phase has begun.
        done: Steps of the phase that had been done when it was begun or gone on with.
        meter: Its losses and seconds, once the folder is open.
        outcome: Its result, or why there is none; None while it is under way.
    """

    checkpoints: CheckpointManager
    progress: PhaseProgress
    data: grain.DatasetIterator[HostBatch]
    meter: Meter

    def __init__(
        self,
        run: PhaseRun,
        stack: contextlib.ExitStack,
        observe: Callable[[int, float], None] | None = None,
        outdone: Callable[[str, float], bool] | None = None,
    ):
        self.run, self._observe, self._outdone = run, observe, outdone
        self.done = 0
        self.outcome: dict[str, Any] | UserError | None = None
        self._first = run
        self._snapshot: Snapshot | None = None
        self._reference: Reference | None = None
        # What measurements on validation gave, by their steps: the last one, and the best.
        self._measured: dict[int, Measured] = {}
        self._best_measured: dict[int, Measured] = {}
        self._share, self._compiled_before = 1.0, run.evaluation_compile_seconds
        self._open = stack
        self._open.callback(self._release)
        self._workdir = self._open.enter_context(contextlib.closing(Workdir(run.config.workdir)))

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Makes a ``UserError`` the outcome, where all processes can go on after it."""
        try:
            yield
        except UserError as error:
            if not distributed.is_collective(error):
                raise
            # Without the traceback, whose frames hold the arrays of the training.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            self.outcome = error

    def open(self) -> None:
        """Takes the folder; the result of a run that was finished there is the outcome.

        Raises:
            UserError: The folder is in use, belongs to another run, or can't be written.
        """
        record = self.run.record()
        self._workdir.claim(record)
        self._depends = depended_on(record)
        self._identity = distributed.call_on_main(lambda: identity(self._workdir.config()))
        if not distributed.call_on_main(lambda: done_before(self._workdir, self._identity)):
            distributed.call_on_main(self._keep_tokenizer)
            distributed.call_on_main(self._keep_frozen)
            distributed.call_on_main(functools.partial(recover, self._workdir, self._identity))
        if result := distributed.call_on_main(self._workdir.result):
            distributed.call_on_main(self._keep_certificate)
            say(f"{self._workdir.path} is done: the result is the last line of its metrics.jsonl")
            self.outcome = result
            return
        config = self.run.config
        checkpoints, saved = open_checkpoints(
            self._workdir,
            self._identity,
            self._depends,
            keep_latest=config.keep_latest,
            keep_every=config.keep_every,
        )
        self.checkpoints = self._open.enter_context(checkpoints)
        # The file of it is whole: ``_keep_frozen`` has seen to that.
        self.checkpoints.know_frozen(self.run.inputs.weights_digest, self.run.inputs.backbone)
        self.progress = PhaseProgress.load(saved["phase_progress"]) if saved else PhaseProgress()
        path = self._workdir.path
        self.meter = Meter(
            tuple(self.run.inputs.classes),
            lambda step, batch: keep(path, self.run, step, batch),
            saved.get("meter"),
        )
        self._workdir.metrics.rewind(saved.get("lines", 0))
        self._workdir.metrics.watch(open_metric_writers(path, config))

    def _keep_tokenizer(self) -> None:
        inputs = self.run.inputs
        begun = bool(self._workdir.metrics.lines)
        if self._workdir.keep_tokenizer(inputs.checkpoint, inputs.tokenizer_digest) and begun:
            say(f"warning: {self._workdir.tokenizer} was missing: it is recreated")

    def _keep_frozen(self) -> None:
        inputs, (_, digest) = self.run.inputs, self.run.changed(self.run.params)
        if digest is not None and not self._workdir.checkpoints_removed:
            frozen_leaves.keep(self._workdir.frozen, inputs.backbone, digest)

    def _keep_certificate(self) -> None:
        """Makes the certificate of a finished run again where it is not what it was."""
        path, certificate = self._workdir.path / "certificate.json", self._certificate()
        try:
            found, reason = self._workdir.certificate(), "is not what it was"
        except UserError as error:
            if isinstance(error.__cause__, PermissionError):
                raise  # that is no damage
            found, reason = None, "is missing or damaged"
        if certificate is None and found is None:
            say(f"warning: {path} {reason}, and can't be made again without the checkpoints")
        elif certificate not in (None, found):
            say(f"warning: {path} {reason}: it is recreated")
            write_json(path, certificate)

    def _certificate(self) -> dict[str, Any] | None:
        """The certificate, as the last checkpoint knows it; None where there is none."""
        saved = CheckpointReader(self._workdir.checkpoints, self._identity)
        if (last := saved.last_step) is None:
            return None
        return results.run_certificate(saved.progress(last)["phase_progress"]["certificates"])

    @property
    def place(self) -> tuple[int, int, bool]:
        """Phase, steps done in it, whether it is over: runs at one place can go on together."""
        progress, last = self.progress, self.checkpoints.last_step
        return progress.phase, (last or 0) - progress.start, progress.over is not None

    @property
    def has_phases(self) -> bool:
        """Whether it has a phase to begin or to go on with."""
        return self.outcome is None and not self._ended

    @property
    def _ended(self) -> bool:
        """Whether its last phase is over, or a recipe has stopped at one."""
        progress = self.progress
        last = progress.stopped or progress.phase + 1 == len(self.run.plans)
        return bool(progress.over and last)

    @property
    def trains(self) -> bool:
        """Whether its phase goes on."""
        return self.outcome is None and self.progress.over is None

    def begin(self) -> tuple[TrainState, Params]:
        """Goes on from the last checkpoint, or begins the next phase.

        Returns:
            The state and the frozen partition to start with.

        Raises:
            UserError: The checkpoint is damaged.
        """
        last, resumed = self.checkpoints.last_step, None
        if (snapshot := self._snapshot) is None:
            snapshot = at_place(self._first, self.checkpoints, last)
            resumed = None if self.progress.over else last
        if self.progress.over:
            snapshot, self.progress = next_phase(
                snapshot, self.progress, self._first, self.checkpoints
            )
        if snapshot.run is not self.run:
            # The first one is not begun with again.
            self._release()
        self.run, self._snapshot = snapshot.run, None
        self.done = int(snapshot.state.step) - self.progress.start
        frozen = self.run.partition.split(snapshot.params)[1]
        if resumed is None:
            self.progress.frozen_before = freezing.digest(frozen)
        self._follow(snapshot.params, resumed)
        return snapshot.state if resumed is None else snapshot.state.swapped(), frozen

    def _follow(self, params: Params, resumed: int | None) -> None:
        """Prepares what the phase needs beside the state: the batches, and what is watched."""
        run, plan = self.run, self.run.plans[self.run.index]
        texts, self._reference = run.training.texts, None
        if plan.watched:
            if resumed is None:
                held = run.training if plan.held else None
                splits = run.split("validation"), held
                self._reference = reference(run.evaluator, params, plan.watched, *splits)
            else:
                self._reference = Reference.of(self.checkpoints.restore_reference(resumed))
            held = [run.inputs.tasks[name] for name in plan.held]
            texts = dataclasses.replace(texts, targets=self._reference.targets(held))
        start = self.progress.positions.get(plan.texts, 0)

        def after(drawn: int) -> grain.DatasetIterator[HostBatch]:
            left, first = max(plan.steps, 1) - drawn, start + drawn
            return train_batches(texts, run.plan, run.config.seed, first, left, run.own_rows)

        self.data, self._drawn = after(0), 0
        if resumed is not None:
            self.data, self._drawn = batches_from(self.checkpoints, resumed, after, self.done)

    def join(self, seed_runs: int) -> None:
        """From here on its time is shared by so many that have begun, itself among them."""
        self._share, run = 1 / seed_runs, self.run
        if self.done == 0 and run.feature_seconds:
            new = self.progress.book_features(run.features, run.feature_seconds)
            self.meter.book(new / seed_runs)
            self.meter.beside["frozen_pass"] += new / seed_runs

    def book(self, steps: int, seconds: float, compile_seconds: float, seed_runs: int) -> None:
        """Takes its share of what steps of so many took, and of compiling them.

        Args:
            steps: That have been sent off; 0 where the last of them was waited for.
            seconds: Since the last look at the clock, without compilation.
            compile_seconds: Of compilation.
            seed_runs: Whose share this is, among how many.
        """
        self.meter.book(seconds / seed_runs, compile_seconds / seed_runs)
        if steps:
            self.meter.step_times.sent(seconds / seed_runs, steps, compile_seconds > 0)
        else:
            self.meter.step_times.waited(seconds / seed_runs)

    def draw(self, steps: int) -> list[HostBatch]:
        """The next batches."""
        return list(itertools.islice(self.data, steps))

    def add(self, done: int, metrics: Callable[[], Mapping[str, Any]], batch: HostBatch) -> None:
        """Takes in the step ``done`` of the phase, on ``batch``; see ``Meter.add``."""
        step = self.progress.start + done
        self.meter.add(step, metrics, batch)
        if step % _LOG_EVERY == 0:
            count = self.progress.schedule_start + done - 1
            self._workdir.metrics.log(results.step_record(self.run, count, self.meter))

    def evaluate(self, state: TrainState, frozen: Params, done: int) -> float | None:
        """Measures the phase on validation, and finds whether it is over.

        Args:
            state: Its state, one copy.
            frozen: Its frozen partition, one copy.
            done: Steps done in the phase.

        Returns:
            What the checkpoint is chosen by; None where it can't be the best.

        Raises:
            UserError: The loss there is not finite, or nothing can be written.
        """
        run, progress, plan = self.run, self.progress, self.run.plans[self.run.index]
        step, epoch = progress.start + done, progress.passed + plan.epochs(done)
        metrics, logits = validate(run, Partition.merge(state.trainable, frozen), step)
        self._measured = {step: (metrics, logits)}
        drift = self._reference.drift(logits, run.inputs.tasks) if self._reference else {}
        record = results.epoch_record(plan.phase, run.index, step, epoch, self.meter, metrics)
        self._workdir.metrics.log(record | ({"drift": drift} if drift else {}))
        words = results.in_words(metrics, self.meter.rate)
        say(f"{self._name()}epoch {record['epoch']} of {run.epochs:.4g}: {words}")
        progress.measured.append((step, score(plan.phase, metrics)))
        at_risk = {task: far for task, far in drift.items() if task in plan.guarded}
        words = drift_warning(plan.phase.drift_limit or math.inf, at_risk)
        if words and not progress.drifted:
            progress.drifted = True
            say(f"{self._name()}warning: {words}")
            self._workdir.metrics.log({"event": "drift", "step": step, "words": words})
        progress.over = progress.verdict(plan.phase, step, plan.steps)
        self.meter.reset()
        if self._observe is not None:
            self._observe(step, mean_score(metrics, run.tasks))
        best = self.checkpoints.best_step
        # Of a phase that keeps its end only that may take the place of an earlier phase's best.
        passing = (
            plan.keeps_end and not progress.over and best is not None and best <= progress.start
        )
        return None if passing else mean_score(metrics, run.tasks)

    def end_phase(self, state: TrainState, frozen: Params) -> None:
        """Writes the certificate of a phase that is over; the next one begins with its end."""
        self._snapshot = Snapshot.of(self.run, state, frozen)
        record, words = close_phase(self._snapshot, self.progress, int(state.step))
        self._workdir.metrics.log(record)
        if self.run.config.recipe:
            say(f"{self._name()}{words}")

    def may_be_gone_back_to(self, state: TrainState) -> bool:
        """Whether the next phase may begin with what the phase has come to here."""
        return int(state.step) in self.progress.needed(self.run.plans[self.run.index].phase)

    def is_outdone(self, state: TrainState, score: float | None) -> bool:
        """Whether it has ended, and its model would be removed; ``score`` is that of ``save``."""
        config, outdone = self.run.config, self._outdone
        # Several processes that are told to leave may be at different places when they do.
        alone = distributed.count() == 1
        if outdone is None or not self._ended or config.keep_final_state or not alone:
            return False
        best = self.checkpoints.best_score(score, self._replaced(state))
        return best is not None and outdone(config.workdir, best)

    def save_end(self) -> None:
        """Leaves a checkpoint of its end, where it has ended and ``is_outdone`` has spared that."""
        end = self._snapshot
        if end is not None and self._ended and not self.has_saved(end.state):
            self.run = end.run
            self.save(end.state, self.run.partition.split(end.params)[1])
            self.checkpoints.wait()

    def has_saved(self, state: TrainState) -> bool:
        """Whether there is a checkpoint of what the run has come to."""
        return self.checkpoints.last_step == int(state.step)

    def hold(self, state: TrainState, frozen: Params, score: float | None) -> None:
        """Holds the parameters, if they are the best, for the next ``save``."""
        changed, digest = self.run.changed(Partition.merge(state.trainable, frozen))
        self.checkpoints.hold(
            int(state.step), changed, score, self._replaced(state), digest, self.run.index
        )
        self._note_best()

    def _note_best(self) -> None:
        """Keeps the logits of the best measurement, so that it need not be made again."""
        if self.checkpoints.best_step in self._measured:
            self._best_measured = self._measured

    def _replaced(self, state: TrainState) -> Container[int]:
        """Of which steps the scores do not matter any more; see ``CheckpointManager.save``."""
        progress, plan = self.progress, self.run.plans[self.run.index]
        return range(progress.start + 1, int(state.step)) if plan.keeps_end else ()

    def save(self, state: TrainState, frozen: Params, score: float | None = None) -> None:
        """Leaves a checkpoint; see ``CheckpointManager.save``."""
        progress, plan = self.progress, self.run.plans[self.run.index]
        with self.meter.timed("saving"):
            changed, digest = self.run.changed(Partition.merge(state.trainable, frozen))
            self.checkpoints.save(
                changed,
                state,
                self.data,
                {
                    "phase_progress": progress.state(),
                    "meter": self.meter.state(),
                    "lines": self._workdir.metrics.lines,
                    "drawn": self._drawn,
                    "depended_on": self._depends,
                },
                score,
                replaced=self._replaced(state),
                keep=progress.needed(plan.phase),
                reference=self._reference.arrays() if self._reference else None,
                frozen=digest,
                phase=self.run.index,
                only_best=self._ended and not self.run.config.keep_final_state,
            )
            self._note_best()

    @property
    def is_trial(self) -> bool:
        """Whether it is watched while it trains, and not measured at its end."""
        return self._observe is not None

    def leave(self) -> None:
        """Ends a trial, when what has been saved of it is on the disk."""
        self.checkpoints.wait()
        self.outcome = {}
        self._release()

    def finish(self) -> None:
        """Leaves ``certificate.json`` and measures the best checkpoint, which makes the result."""
        meter = self.meter
        certificate = results.run_certificate(self.progress.certificates)
        write_json(self._workdir.path / "certificate.json", certificate)
        best = self.checkpoints.best_step or 0
        params = self._go_to_best(best)
        run = self.run
        records = distributed.call_on_main(self._workdir.metrics.records)
        epochs = [record for record in records if record["event"] == "epoch"]
        chosen = next(record for record in epochs if record["step"] == best)
        trains = any(plan.partition.groups for plan in run.plans)
        with meter.timed("measurement"):
            measured, probe_flops, probe_seconds = results.measurements(
                run,
                params,
                self._workdir.path,
                probe=not trains,
                known=self._best_measured.get(best),
            )
            if run.config.watch.measure_layers:
                measured["layers"] = layer_roles(run, params)
        # Until here the last save had time, for nothing else needs the disk.
        with meter.timed("saving"):
            self.checkpoints.wait()
        compiling = (run.evaluation_compile_seconds - self._compiled_before) * self._share
        steps = results.steps_of_phases(records)
        result = {
            **results.run_result(run, epochs, chosen, certificate, self.progress.stopped),
            "untrained_heads": results.untrained_heads(self._first, steps, best),
            "by_phase": results.by_phase(run, steps, epochs),
            "updates_by_task": updates_by_task(run, steps),
            **measured,
            "text_baseline": run.inputs.text_baseline,
            **flops_record(self._first, steps, probe_flops),
            "train_seconds": meter.train_seconds + probe_seconds,
            **meter.step_times.summary(),
            "compile_seconds": meter.compile_seconds + compiling,
            "wall_time": meter.wall_time(compiling),
            "examples_per_second": meter.rate,
        }
        self._workdir.metrics.log(result)
        self.outcome = result
        self._release()

    def _go_to_best(self, step: int) -> Params:
        """Takes the run to the phase of a checkpoint, whose frozen part its parameters have."""
        if (known := self.checkpoints.best()) is not None:
            params, phase = known
        else:
            # What an earlier call found best may be in the checkpoint that is still being written.
            with self.meter.timed("saving"):
                self.checkpoints.wait()
            found = self.checkpoints.restore_best()
            params = self.checkpoints.restore_params(step) if found is None else found
            phase = self.checkpoints.best_phase
            if phase is None:
                phase = self.checkpoints.progress(step)["phase_progress"]["phase"]
        if phase != self.run.index:
            self._release()
            self.run = self._first.at(phase, params)
        return params

    def _release(self) -> None:
        """Lets the activations of its phases make room for others."""
        self._first.release()
        self.run.release()

    def _name(self) -> str:
        return f"seed {self.run.config.seed}, " if self._share < 1 else ""
