"""The learning rate of heads on a frozen backbone, chosen on validation by a quick sweep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_jax.config.optimizer import HEAD_LEARNING_RATE
from mtl_jax.config.tasks import SCORES
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.console import duration, say
from mtl_jax.core.errors import UserError
from mtl_jax.data.kinds import has_label
from mtl_jax.runs.head_sweep import Grid, Heads, train_heads
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.kinds.registry import kind_of

RATES = (1e-3, HEAD_LEARNING_RATE, 1e-2, 3e-2)
# Of the sweep's own, whatever the seed of the run: one rate for all seeds.
_SEEDS = (0, 1)
# Standard errors by which another rate must be better than the default: with few validation
# texts the best of several is better by chance.
_CLEARLY = 2.0
_RESAMPLES, _MOST_TEXTS = 200, 2000


def chosen_head_rate(run: PhaseRun) -> float:
    """Returns the learning rate for the heads of the first phase of ``run``.

    Trains the heads with each of ``RATES`` and two seeds, for about as many whole epochs as the
    phase has, and compares the score on validation, macro-F1 or R2, its mean over tasks and
    seeds. The default
    keeps its place unless another rate is better by two standard errors, from a paired bootstrap
    over the validation texts. It is done once for all runs on the same inputs.

    Args:
        run: In its first phase, whose ``rate_is_open``.
    """
    plan, known = run.plans[0], run.inputs.head_rates
    key = rate_key(run)
    if key not in known:
        started = time.perf_counter()
        tried = ", ".join(f"{rate:g}" for rate in RATES)
        say(f"trying the head learning rates {tried} (--head-learning-rate sets one)")
        weights = tuple((task, (weight,)) for task, weight in plan.phase.weights.items())
        grid = Grid(_SEEDS, RATES, (), weights)
        heads, _, _ = train_heads(run, grid)
        names = {SCORES[task.kind] for task in run.inputs.tasks.values()}
        name = {"macro_f1": "macro-F1", "r2": "R2"}[names.pop()] if len(names) == 1 else "score"
        rate, words = _choice(*_compared(run, heads), name)
        took = duration(time.perf_counter() - started)
        say(f"head learning rate {rate:g}: {words} ({took})")
        known[key] = rate
    return known[key]


def rate_key(run: PhaseRun) -> Any:
    """What a rate is chosen for; nothing else that a run is made of makes a difference to it."""
    plan = run.plans[0]
    how = plan.optimizer, plan.head_dropout, plan.phase.task_weights, plan.class_weights
    return *how, run.config.weighting, plan.texts, run.plan.layout


def _choice(scores: np.ndarray, errors: np.ndarray, name: str) -> tuple[float, str]:
    """The rate, and why; the arguments are what ``_compared`` gives, and what scores are called."""
    default, best = RATES.index(HEAD_LEARNING_RATE), int(scores.argmax())
    gain = scores[best] - scores[default]
    if gain > _CLEARLY * errors[best]:
        return RATES[best], (
            f"{name} {scores[best]:.3f} on validation, {scores[default]:.3f} with "
            f"{RATES[default]:g}"
        )
    others = ", ".join(f"{rate:g}" for rate in RATES if rate != RATES[default])
    return RATES[default], f"none of {others} does clearly better on validation"


def _compared(run: PhaseRun, heads: Heads) -> tuple[np.ndarray, np.ndarray]:
    """Per rate its score on validation, and the standard error of what it is above the default's.

    Returns:
        Both float64 [rates].
    """
    texts = run.split("validation").texts
    if texts.pooled is None:
        raise ValueError("the vectors of a frozen backbone are kept")
    chosen = np.unique(np.linspace(0, len(texts) - 1, _MOST_TEXTS).round().astype(int))
    vectors = texts.pooled[chosen]
    drawn = np.random.default_rng(0).multinomial(
        len(chosen), np.full(len(chosen), 1 / len(chosen)), _RESAMPLES
    )
    weights = np.concatenate([np.ones((1, len(chosen))), drawn]).astype(np.float32)
    predicted = [
        [heads.predicted(seed, rate, vectors) for seed in range(len(_SEEDS))]
        for rate in range(len(RATES))
    ]
    found = []
    for task, labels in texts.labels.items():
        own, there = labels[chosen], has_label(labels[chosen])
        if not there.any():
            continue
        kind, counted = kind_of(labels), weights[:, there]
        for seeds in predicted:
            scores = [kind.resampled(own[there], each[task][there], counted) for each in seeds]
            found.append(np.mean(scores, axis=0))
    if not found:
        return np.zeros(len(RATES)), np.zeros(len(RATES))
    scores = np.reshape(found, (-1, len(RATES), 1 + _RESAMPLES)).mean(0)
    differences = scores - scores[RATES.index(HEAD_LEARNING_RATE)]
    return scores[:, 0], differences[:, 1:].std(-1)


def recorded_head_rate(configs: Sequence[TrainConfig]) -> float | None:
    """Returns the rate with which one of these runs was begun; None where none was.

    A run that is gone on with keeps its rate, whatever a sweep would choose now.
    """
    for config in configs:
        folder = Workdir(config.workdir)
        try:
            record: Any = folder.config() if folder.exists else {}
            rates = dict(record["phases"][0]["learning_rates"])
            return float(rates["head"])
        except (UserError, LookupError, TypeError, ValueError):
            # What is wrong with the folder is told when it is claimed.
            continue
    return None
