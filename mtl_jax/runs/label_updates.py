"""How many updates of a run met labels of each task: a thin task is missing from many batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mtl_jax.data.batches import EpochOrder
from mtl_jax.data.kinds import has_label
from mtl_jax.runs.phase_run import PhaseRun


def updates_by_task(run: PhaseRun, steps: Sequence[int]) -> dict[str, int]:
    """Counts the updates whose batch had a label of a task, while the loss of the task counted.

    The order of a run's batches follows from its seed, so that they are counted again and not
    while it trains: a run that was resumed has the same counts.

    Args:
        run: The run, in any phase.
        steps: Updates in each phase that was begun.

    Returns:
        Of each task that any phase counts.
    """
    found: Counter[str] = Counter()
    positions: Counter[str] = Counter()
    for plan, count in zip(run.plans, steps, strict=False):
        labels = run.inputs.training(plan.phase.tasks).texts.labels
        order, start = EpochOrder(plan.batches, run.config.seed), positions[plan.texts]
        for task in plan.phase.tasks:
            labelled = has_label(labels[task])
            found[task] += (
                count if labelled.all() else _met(order, plan.batches.steps, start, count, labelled)
            )
        positions[plan.texts] += count
    return dict(found)


def _met(order: EpochOrder, per_epoch: int, start: int, count: int, labelled: np.ndarray) -> int:
    """How many of so many batches from ``start`` on have a text of those, bool [texts]."""
    places = (divmod(index, per_epoch) for index in range(start, start + count))
    return sum(bool(labelled[order.placements(e)[i].texts].any()) for e, i in places)
