"""From the end of one phase to the start of the next: parameters, moments, partition."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from mtl_jax.freezing.lora import FACTORS
from mtl_jax.freezing.partition import Params, Partition, certificate
from mtl_jax.runs.checkpoints.manager import CheckpointManager
from mtl_jax.runs.phase_plan import keeps_factors
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.progress import PhaseProgress
from mtl_jax.training.optimizer import carried
from mtl_jax.training.program import TrainState


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run at a step.

    Attributes:
        run: In the phase of that step; its parameters are those of the phase's start.
        params: All parameters at that step, on the host.
        state: The training state at that step, one copy.
    """

    run: PhaseRun
    params: Params
    state: TrainState

    @classmethod
    def of(cls, run: PhaseRun, state: TrainState, frozen: Params) -> Snapshot:
        """The place of a state that may be given away to the next step."""
        state, frozen = jax.tree.map(np.array, (state, frozen))
        return cls(run, Partition.merge(state.trainable, frozen), state)


def at_place(first: PhaseRun, checkpoints: CheckpointManager, step: int | None) -> Snapshot:
    """The place that a checkpoint has saved, in whichever phase that was.

    Args:
        first: The run in its first phase.
        checkpoints: The run's.
        step: One of the saved steps; None for the place before the first.

    Raises:
        UserError: The checkpoint is damaged.
    """
    if step is None:
        return Snapshot(first, first.params, first.start())
    checkpoints.wait()
    phase = checkpoints.progress(step)["phase_progress"]["phase"]
    shapes = first if phase == 0 else first.at(phase, first.params)
    params, state = checkpoints.restore(step, shapes.start(), shapes.partition)
    return Snapshot(first.at(phase, params), params, state)


def close_phase(place: Snapshot, progress: PhaseProgress, step: int) -> tuple[dict[str, Any], str]:
    """Closes a phase that is over: its certificate, and whether another one follows.

    Args:
        place: Its end.
        progress: The run's there, which is changed.
        step: Steps of the run.

    Returns:
        What is said of it in ``metrics.jsonl``, and in words.
    """
    run = place.run
    proof = certificate(run.partition, place.params, place.state.opt_state, progress.frozen_before)
    progress.certificates.append({"scenario": run.phase.scenario, **proof})
    if run.index + 1 < len(run.plans):
        progress.stopped = progress.refusal(run.plans[run.index + 1].phase)
    record = {"event": "phase", "step": step, "phase": run.index + 1, "over": progress.over}
    stopped = f"; the recipe stops: {progress.stopped}" if progress.stopped else ""
    words = f"phase {run.index + 1}, {run.phase.scenario}: {progress.over}{stopped}"
    return record | {"stopped": progress.stopped}, words


def next_phase(
    place: Snapshot, progress: PhaseProgress, first: PhaseRun, checkpoints: CheckpointManager
) -> tuple[Snapshot, PhaseProgress]:
    """Begins the phase after one that is over.

    The parameters and moments are those of the end of the phase or of its best measurement, as
    the phase says; the count of steps goes on in any case.

    Args:
        place: The end of the phase.
        progress: The run's, there.
        first: The run in its first phase.
        checkpoints: The run's.

    Raises:
        UserError: A checkpoint to go back to is damaged.
    """
    plan, following = (place.run.plans[progress.phase + i] for i in (0, 1))
    step = int(place.state.step)
    params, moments = place.params, place.state.opt_state
    if (best := progress.target(plan.phase, step)) != step:
        back = at_place(first, checkpoints, best)
        params, moments = back.params, back.state.opt_state
    run = first.at(progress.phase + 1, params)
    passed = plan.epochs(step - progress.start)
    progress = progress.next(plan.phase, following.phase, step, passed, plan.texts)
    fresh = run.start()
    anew = () if keeps_factors(run.plans, run.index) else FACTORS
    moments = carried(fresh.opt_state, moments, progress.schedule_start, anew)
    state = fresh.replace(step=place.state.step, opt_state=moments)
    return Snapshot(run, run.params, state), progress
