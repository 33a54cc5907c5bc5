"""The training loop, from settings to finished folders; to be read from top to bottom.

``train_seeds`` makes the runs ready and groups those that are at the same place, ``_train_group``
goes from phase to phase and measures the end, and ``_train_phase`` is the loop over the steps:
batches, steps, measurement, end of the phase, save. A ``SeedRun`` is what one seed has to itself.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from mtl_jax.config.train import TrainConfig
from mtl_jax.core import preemption
from mtl_jax.core.console import say, training_bar
from mtl_jax.core.errors import Preempted, UserError, require_type
from mtl_jax.freezing.partition import Params
from mtl_jax.runs.monitoring.profiling import Trace, training_trace
from mtl_jax.runs.monitoring.progress_log import Heartbeat, training_heartbeat
from mtl_jax.runs.monitoring.train_metrics import Stopwatch
from mtl_jax.runs.notes import learned_too_little
from mtl_jax.runs.prepare import prepare_runs
from mtl_jax.runs.save_clock import SaveClock
from mtl_jax.runs.seed_run import SeedRun
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.program import TrainState


def train(config: TrainConfig, inputs: Inputs | None = None) -> dict[str, Any]:
    """Trains one scenario or recipe, or goes on where an earlier call on the same folder stopped.

        result = mtl.train(mtl.TrainConfig(workdir="runs/mine", scenario="backbone_frozen"))
        result["validation"]["sentiment"]["macro_f1"]

    Args:
        config: The settings.
        inputs: What ``open_inputs(config)`` gives, to share it between runs.

    Returns:
        The result, which is also the last line of ``metrics.jsonl``.

    Raises:
        UserError: The settings, the data or the folder are at fault; what was there before
            is as it was.
        Preempted: SIGTERM has come, where that is heeded; see ``preemption``.
    """
    require_type(config, TrainConfig, "config", "give a TrainConfig")
    (outcome,) = train_seeds([config], inputs)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def train_seeds(
    configs: Sequence[TrainConfig],
    inputs: Inputs | None = None,
    observe: Callable[[int, float], None] | None = None,
    outdone: Callable[[str, float], bool] | None = None,
) -> list[dict[str, Any] | UserError]:
    """Trains one scenario or recipe with several seeds at once; each leaves what ``train`` leaves.

    A step takes one batch of each seed. ``parallel`` ``jit`` keeps them on one device, any
    other spreads the seeds, not their batches, over all: a seed sees the batches, the
    initial heads and the dropout that it sees alone on one device, and its numbers differ by
    rounding. Evaluation and checkpoints go seed by seed. Of what the training steps and
    compiling took, each result has an equal share.

    Folders that are at the same step of the same phase go on together, the others in groups
    of their own. Where a phase freezes what an earlier one has trained, the seeds have no
    frozen part in common, and are trained one after the other; so they are in a run of several
    processes, and where the devices share the parameters.

    Args:
        configs: The settings, which differ in ``seed`` and ``workdir`` only.
        inputs: As of ``train``.
        observe: Is called with each measurement on validation, the steps so far and the score;
            a ``UserError`` that it raises ends the run. Such a run is a trial: it is not measured
            at its end, no test split is read, and its result is empty.
        outdone: Is asked at the end of a run, with its folder and best score, whether its
            checkpoints would be removed anyway: those of the end are not written then.

    Returns:
        Per seed the result, or in its place why there is none, as a loss that is not finite,
        or a folder that belongs to another run: the others do without it.

    Raises:
        UserError: What the seeds have in common is at fault.
    """
    if not configs:
        return []
    prepared = prepare_runs(configs, inputs)
    runs = prepared.runs
    if not prepared.go_together:
        prepared.tell()
        return [
            outcome
            for run in runs
            for outcome in train_seeds([run.config], run.inputs, observe, outdone)
        ]

    with contextlib.ExitStack() as stack:
        seed_runs = [SeedRun(run, stack, observe, outdone) for run in runs]
        for seed_run in seed_runs:
            with seed_run.guarded():
                seed_run.open()
        if under_way := _under_way(seed_runs):
            prepared.tell()
        # Once for all: the last step of a group that has been trained may be another's first.
        groups: dict[tuple[int, int, bool], list[SeedRun]] = {}
        for seed_run in under_way:
            groups.setdefault(seed_run.place, []).append(seed_run)
        for group in groups.values():
            try:
                _train_group(group)
            except Preempted:
                for seed_run in _under_way(group):
                    with seed_run.guarded():
                        seed_run.save_end()
                raise
            except KeyboardInterrupt:
                say(f"what was saved before is there: {preemption.AGAIN}")
                raise
        if inputs is None:
            for seed_run in under_way:
                for warning in learned_too_little(seed_run.outcome):
                    say(warning)
        return [cast("dict[str, Any] | UserError", seed_run.outcome) for seed_run in seed_runs]


def _train_group(seed_runs: Sequence[SeedRun]) -> None:
    """Trains the phases that are left of runs at one place, and measures what came of them."""
    run = seed_runs[0].run
    with contextlib.closing(training_trace(run)) as trace:
        heartbeat = training_heartbeat(run)
        while with_phases := [seed_run for seed_run in seed_runs if seed_run.has_phases]:
            preemption.leave_if_due()
            _train_phase(with_phases, trace, heartbeat)
    preemption.leave_if_due()
    # Nothing is measured on the test split before.
    finished = [seed_run for seed_run in _under_way(seed_runs) if not seed_run.is_trial]
    if finished and "test" in run.inputs.corpus.splits:
        for note in run.inputs.of_test():
            say(note)
    for seed_run in finished:
        with seed_run.guarded():
            seed_run.finish()
    for seed_run in _under_way(seed_runs):
        seed_run.leave()


def _train_phase(seed_runs: Sequence[SeedRun], trace: Trace, heartbeat: Heartbeat) -> None:
    """Trains one phase of whoever can be, who are all at one place of it, to its end.

    A run that fails, or whose phase ends before the others', keeps its place in the batch,
    and what becomes of it is not looked at.
    """
    begun = []
    for seed_run in seed_runs:
        with seed_run.guarded():
            begun.append((seed_run, seed_run.begin()))
    if not begun:
        return
    seed_runs, starts = zip(*begun, strict=True)
    for seed_run in seed_runs:
        seed_run.join(len(seed_runs))
    run, done = seed_runs[0].run, seed_runs[0].done
    total, checkpoint_every = run.total_steps, run.config.checkpoint_every
    measure_every = run.plans[run.index].measure_every * run.plan.steps
    title = _title(seed_runs)
    texts, held_out = (len(run.split(name).texts) for name in ("training", "validation"))
    say(f"{title}: {texts:,} texts to train on, {held_out:,} to validate")
    for note in (run.useless_weighting, run.useless_r_drop):
        if note:
            say(f"note: {note}")
    train_step = run.compiled_step(len(seed_runs))
    vectors = train_step.vectors(run.training.texts) if total else None
    state, frozen = train_step.place(*zip(*starts, strict=True))
    del begun, starts
    if done:
        say(f"resuming from step {done} of {total}")
    watch, clock = Stopwatch(), SaveClock(run.config.checkpoint_minutes)

    def book(steps: int, compile_seconds: float = 0.0) -> None:
        seconds, there = watch.lap() - compile_seconds, _training(seed_runs)
        for seed_run in there:
            seed_run.book(steps, seconds, compile_seconds, len(there))

    def copies() -> list[tuple[SeedRun, TrainState, Params]]:
        """Whose phase goes on, with one copy of its state, as it is kept, and frozen partition."""
        placed = zip(seed_runs, train_step.unplace(state, frozen), strict=True)
        return [(each, own.swapped(), held) for each, (own, held) in placed if each.trains]

    if total == 0:
        for seed_run, own, own_frozen in copies():
            with seed_run.guarded():
                _measure(seed_run, own, own_frozen, done, saves=True)
    with training_bar(title, total, done) as update, preemption.deferred():
        watch.start()
        while done < total and _training(seed_runs):
            # Batches: as many as one call takes, up to the next measurement or save.
            stops = [measure_every, *([checkpoint_every] if checkpoint_every else [])]
            steps = min(train_step.most, total - done, *(every - done % every for every in stops))
            batches = [seed_run.draw(steps) for seed_run in seed_runs]
            # Steps: each takes one batch of each seed; a call takes many where heads alone train.
            compiled = train_step.step.seconds
            first = seed_runs[0].progress.start + done
            state, metrics = trace(first, steps, watch, train_step, state, frozen, vectors, batches)
            book(steps, train_step.step.seconds - compiled)
            # Losses of each step, for the log.
            for index, of_step in enumerate(metrics):
                done += 1
                for place, seed_run in enumerate(seed_runs):
                    if seed_run.trains:
                        with seed_run.guarded():
                            seed_run.add(done, partial(of_step, place), batches[place][index])
            if there := _training(seed_runs):
                losses, meter = _mean_losses(there), there[0].meter
                update(done, losses, meter.rate)
                heartbeat(meter.step, run.index, losses, meter.rate)
            # Measurement, end of the phase, save: see _measure.
            measures, leaves = done % measure_every == 0 or done == total, preemption.due()
            saves = bool(checkpoint_every) and done % checkpoint_every == 0
            saves = clock.due(measures=measures) or saves or leaves
            if measures or saves:
                for seed_run in _training(seed_runs):
                    with seed_run.guarded():
                        seed_run.meter.read()
                book(0)
                for seed_run, own, own_frozen in copies():
                    with seed_run.guarded():
                        if measures:
                            _measure(seed_run, own, own_frozen, done, saves=saves)
                        else:
                            seed_run.save(own, own_frozen)
                # It may have come meanwhile; to measure takes longer than a step.
                if not leaves and (leaves := preemption.due()) and not saves:
                    for seed_run, own, own_frozen in copies():
                        if not seed_run.has_saved(own):
                            with seed_run.guarded():
                                seed_run.save(own, own_frozen)
                if saves:
                    clock.start()
                watch.start()
            if leaves:
                _leave(seed_runs, done)


def _measure(
    seed_run: SeedRun, state: TrainState, frozen: Params, done: int, *, saves: bool
) -> None:
    """Measures what an epoch of the phase, or its last steps, have led to.

    It is saved where that is due, where the phase is over, unless nobody will want the checkpoint,
    and where the next phase may go on from here; else its parameters are held, if they are the
    best, until the next save.

    Raises:
        UserError: The loss there is not finite, or nothing can be written.
    """
    with seed_run.meter.timed("measurement"):
        score = seed_run.evaluate(state, frozen, done)
    if over := seed_run.progress.over is not None:
        seed_run.end_phase(state, frozen)
    due = saves or seed_run.may_be_gone_back_to(state)
    if due or (over and not seed_run.is_outdone(state, score)):
        seed_run.save(state, frozen, score)
    else:
        seed_run.hold(state, frozen, score)


def _under_way(seed_runs: Sequence[SeedRun]) -> list[SeedRun]:
    return [seed_run for seed_run in seed_runs if seed_run.outcome is None]


def _training(seed_runs: Sequence[SeedRun]) -> list[SeedRun]:
    return [seed_run for seed_run in seed_runs if seed_run.trains]


def _leave(seed_runs: Sequence[SeedRun], done: int) -> None:
    """Ends the run, for now, when what has been saved of it is on the disk.

    Raises:
        Preempted: It is.
        UserError: Nothing could be saved.
    """
    for seed_run in _under_way(seed_runs):
        with seed_run.guarded():
            seed_run.checkpoints.wait()
    errors = [each.outcome for each in seed_runs if isinstance(each.outcome, UserError)]
    if len(errors) == len(seed_runs):
        raise errors[0]
    for error in errors:
        say(f"error: {error}")
    where = f"step {done} of {seed_runs[0].run.total_steps}"
    raise Preempted(f"ended by SIGTERM, saved after {where}: {preemption.AGAIN}")


def _mean_losses(seed_runs: Sequence[SeedRun]) -> dict[str, float]:
    losses = [seed_run.meter.losses for seed_run in seed_runs]
    return {task: statistics.fmean(each[task] for each in losses) for task in losses[0]}


def _title(seed_runs: Sequence[SeedRun]) -> str:
    run = seed_runs[0].run
    seeds = ", ".join(str(seed_run.run.config.seed) for seed_run in seed_runs)
    phase = f", phase {run.index + 1} of {len(run.plans)} ({run.phase.scenario})"
    many = "s" if len(seed_runs) > 1 else ""
    return f"{run.config.name}{phase if run.config.recipe else ''}, seed{many} {seeds}"
