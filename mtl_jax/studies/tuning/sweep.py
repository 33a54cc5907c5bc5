"""An arm that trains nothing but heads on kept vectors is tuned by sweeps of them, many at once."""

from __future__ import annotations

import dataclasses

import numpy as np

from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.flops import run_flops
from mtl_jax.runs.head_sweep import Grid, ready, train_heads
from mtl_jax.studies.budget import Budget
from mtl_jax.studies.tuning.record import Trial, TuningRecord
from mtl_jax.studies.tuning.space import Space
from mtl_jax.training.inputs import Inputs

# Heads cost so little that a budget in FLOPs would buy thousands.
_MOST_TRIALS = 24
# Rates of a length at least, before another length is tried.
_FEWEST_RATES = 4


def sweep_arm(
    config: TrainConfig, inputs: Inputs, space: Space, budget: Budget, record: TuningRecord
) -> None:
    """Trains heads with rates spread over their range, a sweep for each length.

    Args:
        config: The run, of the seed whose texts the trials have.
        inputs: Those of it.
        space: What is searched.
        budget: For this arm.
        record: Where the trials are left.
    """
    (rate,) = space.rates
    for changes, count in shares(space, budget.trials or _MOST_TRIALS):
        done = record.trials()
        # A kill may have left some of a sweep's trials, which are the first.
        left = count - sum(trial.length == changes for trial in done)
        if left <= 0:
            continue
        rates = rate.spread(count)
        own = dataclasses.replace(config, **{**changes, rate.field: rates[0]})
        weights = tuple((task, (weight,)) for task, weight in own.weights.items())
        grid = Grid(
            (config.seed,), rates, () if own.weight_decay is None else (own.weight_decay,), weights
        )
        run = ready(own, grid, inputs)
        (flops,) = run_flops(run, [run.total_steps])
        if not budget.has_room(len(done), sum(t.flops for t in done), flops.total * left):
            return
        _, measured, scores = train_heads(run, grid)
        found = list(zip(rates, scores[0], strict=True))[count - left :]
        for number, (value, of_rate) in enumerate(found, len(done)):
            trial = _trial({rate.field: value}, changes, measured, of_rate, run.plans[0].keeps_end)
            record.add(number, dataclasses.replace(trial, flops=flops.total), config.seed)


def shares(space: Space, trials: int) -> list[tuple[dict[str, int], int]]:
    """The settings of each length, with how many rates it is tried with; in all so many."""
    lengths = list(space.lengths.values())[: max(trials // _FEWEST_RATES, 1)]
    each, more = divmod(trials, len(lengths))
    return [(dict(changes), each + (i < more)) for i, changes in enumerate(lengths)]


def _trial(
    rates: dict[str, float],
    length: dict[str, int],
    measured: list[int],
    scores: np.ndarray,
    keeps_end: bool,
) -> Trial:
    curve = [(epoch / measured[-1], float(score)) for epoch, score in zip(measured, scores)]  # noqa: B905
    diverged = bool(np.isnan(scores).any())
    kept = scores[-1] if keeps_end else scores.max()
    return Trial(
        rates=rates,
        length=length,
        validation=None if diverged else float(kept),
        curve=[] if diverged else curve,
        flops=0.0,
    )
