"""The training loop, from settings to finished folders."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from mtl_jax.config.train import TrainConfig
from mtl_jax.core import distributed, preemption
from mtl_jax.core.console import say, training_bar
from mtl_jax.core.errors import Preempted, UserError
from mtl_jax.runs.head_rate import chosen_head_rate, recorded_head_rate
from mtl_jax.runs.monitoring.hooks import Show
from mtl_jax.runs.monitoring.train_metrics import Stopwatch
from mtl_jax.runs.phase_plan import lengths, parted, short_phases, without_effect
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.seed_run import SeedRun
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.text_baseline import in_words, shortfalls

# What may differ between runs that are trained at once.
_OF_SEED = ("seed", "workdir")


def train(config: TrainConfig, inputs: Inputs | None = None) -> dict[str, Any]:
    """Trains one scenario or recipe, or goes on where an earlier call on the same folder stopped.

    Args:
        config: The settings.
        inputs: What ``Inputs(config)`` gives, to share it between runs.

    Returns:
        The result, which is also the last line of ``metrics.jsonl``.

    Raises:
        UserError: The settings, the data or the folder are at fault; what was there before
            is as it was.
        Preempted: SIGTERM has come, where that is heeded; see ``preemption``.
    """
    (outcome,) = train_seeds([config], inputs)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def train_seeds(
    configs: Sequence[TrainConfig], inputs: Inputs | None = None
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
    processes.

    Args:
        configs: The settings, which differ in ``seed`` and ``workdir`` only.
        inputs: As of ``train``.

    Returns:
        Per seed the result, or in its place why there is none, as a loss that is not finite,
        or a folder that belongs to another run: the others do without it.

    Raises:
        UserError: What the seeds have in common is at fault.
    """
    if not configs:
        return []
    configs = [config.absolute() for config in configs]
    _refuse_unlike(configs)
    shared = inputs
    inputs, runs = distributed.call_on_all(partial(_made_ready, configs, shared))

    @functools.cache
    def tell() -> None:
        # A caller who shares inputs between runs says it once for all of them.
        if shared is None:
            _tell(runs[0])

    if runs[0].plans[0].rate_is_open:
        if (rate := distributed.call_on_main(partial(recorded_head_rate, configs))) is None:
            # What looks wrong with the data is seen before anyone waits for a sweep.
            tell()
            # Of several processes each finds one; a rounding may tell them apart.
            rate = distributed.broadcast(
                distributed.call_on_all(partial(chosen_head_rate, runs[0]))
            )
        runs = [run.with_head_learning_rate(rate) for run in runs]
    if len(configs) > 1 and (parted(runs[0].plans) or distributed.count() > 1):
        # A frozen part that differs between the seeds can't be one copy for all of them, and
        # seeds are spread over the devices of one process only.
        tell()
        return [outcome for config in configs for outcome in train_seeds([config], inputs)]
    with contextlib.ExitStack() as stack:
        seed_runs = [SeedRun(run, stack) for run in runs]
        for seed_run in seed_runs:
            with seed_run.guarded():
                seed_run.open()
        there = _under_way(seed_runs)
        if there:
            tell()
        # Once for all: the last step of a group that has been trained may be another's first.
        groups: dict[tuple[int, int, bool], list[SeedRun]] = {}
        for seed_run in there:
            groups.setdefault(seed_run.place, []).append(seed_run)
        for group in groups.values():
            with contextlib.closing(Show(group[0].run)) as show:
                while phase := [seed_run for seed_run in group if seed_run.has_phases]:
                    preemption.leave_if_due()
                    _fit(phase, show)
            preemption.leave_if_due()
            _measure(_under_way(group))
        for seed_run in there if shared is None else ():
            for warning in _shortfalls(seed_run):
                say(warning)
        return [cast("dict[str, Any] | UserError", seed_run.outcome) for seed_run in seed_runs]


def _made_ready(
    configs: Sequence[TrainConfig], inputs: Inputs | None
) -> tuple[Inputs, list[PhaseRun]]:
    inputs = inputs or Inputs(configs[0])
    runs = [PhaseRun(config, inputs, together=len(configs) > 1) for config in configs]
    inputs.refuse_long()
    return inputs, runs


def _tell(run: PhaseRun) -> None:
    """Says what is said once of the data and the settings, whichever seeds are trained."""
    settings = run.config, run.plans
    notes = (make(*settings) for make in (without_effect, lengths, short_phases))
    for note in (*run.inputs.notes(), *itertools.chain.from_iterable(notes)):
        say(note)
    say(in_words(run.inputs.text_baseline))


def _refuse_unlike(configs: Sequence[TrainConfig]) -> None:
    if len({config.workdir for config in configs}) < len(configs):
        raise UserError("seeds that are trained at once need a --workdir each")
    for field in dataclasses.fields(TrainConfig):
        first, *others = (getattr(config, field.name) for config in configs)
        unlike = [value for value in others if value != first]
        if unlike and field.name not in _OF_SEED:
            raise UserError(
                f"runs that are trained at once may differ in {' and '.join(_OF_SEED)}, but "
                f"{field.name} is {first!r} and {unlike[0]!r}: train them one after the other"
            )


def _under_way(seed_runs: Sequence[SeedRun]) -> list[SeedRun]:
    return [seed_run for seed_run in seed_runs if seed_run.outcome is None]


def _fit(seed_runs: Sequence[SeedRun], show: Show) -> None:
    """Trains one phase of whoever can be, who are all at one place of it, to its end.

    A member that fails, or whose phase ends before the others', keeps its place in the batch,
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
    config, total = run.config, run.total_steps
    between = run.plans[run.index].measure_every * run.plan.steps
    texts, held_out = (len(run.split(name).texts) for name in ("training", "validation"))
    say(f"{_title(seed_runs)}: {texts:,} texts to train on, {held_out:,} to validate")
    if note := run.useless_weighting:
        say(f"note: {note}")
    compiled_step = run.compiled_step(len(seed_runs))
    vectors = compiled_step.vectors(run.training.texts) if total else None
    state, frozen = compiled_step.place(*zip(*starts, strict=True))
    del begun, starts
    if done:
        say(f"resuming from step {done} of {total}")
    watch = Stopwatch()

    def until_stop(done: int) -> int:
        every = [between, *([config.checkpoint_every] if config.checkpoint_every else [])]
        return min(total - done, *(steps - done % steps for steps in every))

    def lap(steps: int, compile_seconds: float = 0.0) -> None:
        seconds = watch.lap() - compile_seconds
        there = _training(seed_runs)
        for seed_run in there:
            seed_run.book(steps, seconds, compile_seconds, len(there))

    def each(act: Callable[..., None], *args: Any) -> None:
        for seed_run, copies in zip(seed_runs, compiled_step.unplace(state, frozen), strict=True):
            if seed_run.trains:
                with seed_run.guarded():
                    act(seed_run, *copies, *args)

    if total == 0:
        each(SeedRun.measure, done)
    with training_bar(_title(seed_runs), total, done) as update, preemption.deferred():
        watch.start()
        while done < total and _training(seed_runs):
            steps = min(compiled_step.most, until_stop(done))
            batches = [seed_run.draw(steps) for seed_run in seed_runs]
            compiled = compiled_step.step.seconds
            before = seed_runs[0].progress.start + done
            state, metrics = show.trace(
                before, steps, watch, compiled_step, state, frozen, vectors, batches
            )
            lap(steps, compiled_step.step.seconds - compiled)
            for index, of_step in enumerate(metrics):
                done += 1
                for place, seed_run in enumerate(seed_runs):
                    if seed_run.trains:
                        with seed_run.guarded():
                            seed_run.add(done, partial(of_step, place), batches[place][index])
            if there := _training(seed_runs):
                losses, meter = _mean_losses(there), there[0].meter
                update(done, losses, meter.rate)
                show.heartbeat(meter.step, run.index, losses, meter.rate)
            measures, leaves = done % between == 0 or done == total, preemption.due()
            saves = config.checkpoint_every and done % config.checkpoint_every == 0
            if measures or leaves or saves:
                for seed_run in _training(seed_runs):
                    with seed_run.guarded():
                        seed_run.meter.read()
                lap(0)
                each(SeedRun.measure, done) if measures else each(SeedRun.save, None)
                # It may have come meanwhile; to measure takes longer than a step.
                leaves = leaves or preemption.due()
                watch.start()
            if leaves:
                _leave(seed_runs, done)


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
    errors = [seed_run.outcome for seed_run in seed_runs if isinstance(seed_run.outcome, UserError)]
    if len(errors) == len(seed_runs):
        raise errors[0]
    for error in errors:
        say(f"error: {error}")
    where = f"step {done} of {seed_runs[0].run.total_steps}"
    raise Preempted(f"ended by SIGTERM, saved after {where}: {preemption.AGAIN}")


def _measure(seed_runs: Sequence[SeedRun]) -> None:
    """Ends those that are trained; nothing is measured on the test split before."""
    if seed_runs and "test" in seed_runs[0].run.inputs.corpus.splits:
        for note in seed_runs[0].run.inputs.of_test():
            say(note)
    for seed_run in seed_runs:
        with seed_run.guarded():
            seed_run.finish()


def _shortfalls(seed_run: SeedRun) -> list[str]:
    """In what a run that trained anything has learned less than a bag of words tells."""
    result = seed_run.outcome
    if not isinstance(result, dict) or not result["trainable_parameters"]:
        return []
    return shortfalls(result["validation"], result["text_baseline"])


def _mean_losses(seed_runs: Sequence[SeedRun]) -> dict[str, float]:
    losses = [seed_run.meter.losses for seed_run in seed_runs]
    return {task: statistics.fmean(each[task] for each in losses) for task in losses[0]}


def _title(seed_runs: Sequence[SeedRun]) -> str:
    run = seed_runs[0].run
    seeds = ", ".join(str(seed_run.run.config.seed) for seed_run in seed_runs)
    phase = f", phase {run.index + 1} of {len(run.plans)} ({run.phase.scenario})"
    many = "s" if len(seed_runs) > 1 else ""
    return f"{run.config.name}{phase if run.config.recipe else ''}, seed{many} {seeds}"
