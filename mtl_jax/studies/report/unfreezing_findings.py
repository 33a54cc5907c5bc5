"""From how many sentences unfreezing pays, and whether to unfreeze gradually, in words."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.studies.arm_specs import EQUAL_COST, at_equal_updates
from mtl_jax.studies.report.outline import Failure
from mtl_jax.studies.stats import formatting, wording
from mtl_jax.studies.stats.comparisons import (
    ALIKE,
    BETTER,
    VERDICTS,
    WORSE,
    Comparison,
    Number,
    having,
    in_sequence,
    values_of,
)
from mtl_jax.studies.stats.intervals import LEVEL, mean_interval, of_differences
from mtl_jax.studies.stats.resampling import best_of_others, chosen_p, seeds_needed, smallest_p
from mtl_jax.studies.stats.results import (
    Result,
    arms_of,
    numbers,
    qualities,
    quality,
    score_name,
    unfinished,
)

SETTING = "max_train_examples"
FROZEN, AT_ONCE, GRADUAL = "backbone_frozen", "none_frozen", "gradual_unfreezing"
# Unfreezing at once with the rates and the schedule of gradual unfreezing.
CONTROL = "at_once"


@dataclasses.dataclass(frozen=True)
class Basis:
    """What the arms that are compared have in common.

    Attributes:
        words: What that is.
        frozen: The arm with frozen features.
    """

    words: str
    frozen: str

    def is_depth(self, arm: str) -> bool:
        """Whether an arm trains a fixed number of top layers on this basis."""
        ending = self.frozen.removeprefix(FROZEN)
        top = arm.endswith(ending) and is_depth(arm.removesuffix(ending))
        return arm == AT_ONCE or top


UPDATES = Basis("at equal updates", FROZEN)
COST = Basis("at equal cost", f"{FROZEN}{EQUAL_COST}")


def on(split: str) -> Number:
    """The quality on a split, of a result."""
    return lambda result: quality(result.get(split))


def size_names(lines: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The numbers of training sentences of results and failures, ascending, as written."""
    return {size: f"{size:,}" for size in sorted(values_of(lines, SETTING))}


def is_depth(arm: str) -> bool:
    """Whether an arm trains a fixed number of top layers."""
    return arm == AT_ONCE or re.fullmatch(r"top_\d+", arm) is not None


def is_at_cost(arm: str) -> bool:
    """Whether an arm has as many more passes as its cheaper updates allow."""
    return at_equal_updates(arm) != arm


def chosen_depths(
    results: Sequence[Result], failures: Sequence[Failure], basis: Basis = UPDATES
) -> dict[int, str]:
    """Per seed, at one size, the depth with the best mean validation over the other seeds.

    A seed's own validation score has no part in its choice: the luck that it shares with the
    seed's test score would flatter the depth that it chose. Depths that lack a seed are not
    ranked, unless all do; nor is anything chosen for an only seed.
    """
    depths = _ranked(results, failures, basis)
    scores = {arm: qualities(results, arm, "validation") for arm in depths}
    seeds = sorted({seed for each in scores.values() for seed in each})
    if not seeds:
        return {}
    best = best_of_others(_table(scores, depths, seeds))
    return {seed: depths[arm] for seed, arm in zip(seeds, best, strict=True) if arm >= 0}


def _ranked(results: Sequence[Result], failures: Sequence[Failure], basis: Basis) -> list[str]:
    depths = [arm for arm in arms_of(results) if basis.is_depth(arm)]
    lacking = unfinished(results, failures)
    return [arm for arm in depths if arm not in lacking] or depths


def _table(
    scores: Mapping[str, Mapping[int, float]], arms: Sequence[str], seeds: Sequence[int]
) -> np.ndarray:
    """float64 [arms, seeds], NaN where there is no score."""
    return np.array([[scores[arm].get(seed, np.nan) for seed in seeds] for arm in arms])


def depth_gains(
    results: Sequence[Result],
    split: str,
    failures: Sequence[Failure] = (),
    basis: Basis = UPDATES,
) -> list[Comparison]:
    """Per size the depth chosen on validation, minus the frozen backbone on ``split``.

    Both are on the same basis: they made as many updates, or cost as much.
    A gain is told from none where both the flips of ``chosen_p``, which know of the choice, and the
    t-test over seeds and texts do. The largest size comes first, as the most likely to show a gain;
    a smaller one counts only where every larger one of the study was compared and has told the two
    apart.
    """
    sizes = sorted(size_names([*results, *failures]), reverse=True)
    arms, found, alone = [], [], []
    for size in sizes:
        here = having(results, **{SETTING: size})
        missing = having(failures, **{SETTING: size})
        chosen = chosen_depths(here, missing, basis)
        scores = {arm: qualities(here, arm, split) for arm in (basis.frozen, *chosen.values())}
        gains = {
            seed: scores[arm][seed] - scores[basis.frozen][seed]
            for seed, arm in chosen.items()
            if seed in scores[arm] and seed in scores[basis.frozen]
        }
        # Seeds may have chosen differently: the depth of most of them is named first.
        names = Counter(chosen[seed] for seed in gains).most_common()
        arms.append(" / ".join(arm for arm, _ in names))
        difference = of_differences(gains)
        depths = _ranked(here, missing, basis)
        chosen = _chosen_p(here, depths, basis.frozen, list(gains), split)
        both = [] if difference is None else [difference.t_p, chosen]
        found.append(difference)
        alone.append(max((p for p in both if p is not None), default=None))
    p_values = in_sequence(alone)
    return [
        Comparison(size, arm, difference, p_value)
        for size, arm, difference, p_value in zip(sizes, arms, found, p_values, strict=True)
        if difference is not None
    ]


def _chosen_p(
    results: Sequence[Result],
    depths: Sequence[str],
    frozen: str,
    seeds: Sequence[int],
    split: str,
) -> float | None:
    """Of the gain of what is chosen among ``depths``; None without seeds."""
    if not seeds:
        return None

    def gains(split: str) -> np.ndarray:
        scores = {arm: qualities(results, arm, split) for arm in (frozen, *depths)}
        return _table(scores, depths, seeds) - _table(scores, [frozen], seeds)

    return chosen_p(gains("validation"), gains(split))


def pays_from(gains: Sequence[Comparison]) -> int | None:
    """The smallest size from which on unfreezing is better at every size; None without one."""
    found = None
    for gain in sorted(gains, key=lambda gain: gain.value, reverse=True):
        if gain.verdict != BETTER:
            break
        found = gain.value
    return found


def pays_text(
    results: Sequence[Result],
    split: str,
    failures: Sequence[Failure] = (),
    basis: Basis = UPDATES,
) -> str:
    """From how many sentences unfreezing pays, in words."""
    gains = {gain.value: gain for gain in depth_gains(results, split, failures, basis)}
    if not gains:
        return (
            f"Nothing can be said of unfreezing {basis.words}: no depth shares two seeds with "
            f"`{basis.frozen}`."
        )
    tried = list(size_names([*results, *failures]))
    start, last = pays_from(list(gains.values())), gains.get(tried[-1])
    if start is None:
        why = (
            "no runs can be compared there"
            if last is None
            else {
                WORSE: "frozen features are better there",
                ALIKE: f"the two are {ALIKE} there",
            }.get(last.verdict, f"the two are not told apart there{_reach(last)}")
        )
        return (
            f"On this data, {basis.words}, unfreezing is not shown to pay up to {tried[-1]:,} "
            f"training sentences, the most that were tried: {why}."
        )
    first = gains[start]
    head = (
        f"On this data, {basis.words}, unfreezing pays from {start:,} training sentences on"
        if start > tried[0]
        else f"On this data, {basis.words}, unfreezing pays already with {start:,} training "
        "sentences, the fewest that were tried"
    )
    fewer = [size for size in tried if size < start]
    below = f"; with {fewer[-1]:,} it is not shown to" if fewer else ""
    return (
        f"{head}: there the depth that is chosen for each seed on the validation scores of the "
        f"others, `{first.arm}`, has {formatting.signed(first.mean)} of {split} "
        f"{score_name(results)} over `{basis.frozen}`{below}."
    )


def _reach(gain: Comparison) -> str:
    """What the test of a chosen depth can tell, where the seeds are few."""
    seeds = gain.difference.interval.n
    if seeds >= seeds_needed(LEVEL):
        return ""
    return (
        f", where the sign-flip test of {formatting.count_of(seeds, 'seed')} can give no p below "
        f"{formatting.p_text(smallest_p(seeds))} ({seeds_needed(LEVEL)} could)"
    )


def opponent(results: Sequence[Result]) -> str:
    """What gradual unfreezing is compared with: its control, where the study has that."""
    return CONTROL if CONTROL in arms_of(results) else AT_ONCE


def gradual_text(
    results: Sequence[Result],
    overall: Sequence[Comparison],
    within: Sequence[Comparison],
    split: str,
) -> str:
    """Whether gradual unfreezing beats unfreezing at once, in words.

    Args:
        results: Lines of ``results.jsonl``.
        overall: The comparison over all sizes; empty where there is none.
        within: The comparisons by size.
        split: On which they were made.
    """
    control = opponent(results)
    if not overall:
        return (
            f"Gradual unfreezing is not compared: no seed has both `{GRADUAL}` and `{control}` "
            "at every size that has any of their pairs."
        )
    (whole,) = overall
    interval = whole.difference.interval
    limits = f" {formatting.limits(interval)}" if interval.low is not None else ""
    answer = {
        BETTER: "is better than unfreezing at once",
        WORSE: "is worse than unfreezing at once",
        ALIKE: f"and unfreezing at once are {ALIKE}",
    }.get(whole.verdict, "is not told apart from unfreezing at once")
    counts = ", ".join(
        f"{verdict} at {sum(gain.verdict == verdict for gain in within)}" for verdict in VERDICTS
    )
    return (
        f"With as many passes over the data, gradual unfreezing {answer}: "
        f"{formatting.signed(whole.mean)}{limits} of {split} {score_name(results)}, paired by "
        "seed, the mean over "
        f"{formatting.series([f'{size:,}' for size in whole.value])} sentences "
        f"({wording.corrected_p(whole.p_value, interval.n)}); size by size {counts} of "
        f"{len(within)}. "
        f"{_alike(control)}{_cost(results)}FinBERT and ULMFiT found gradual unfreezing better, "
        "T5 slightly worse."
    )


def _alike(control: str) -> str:
    """Whether their phases are all that gradual unfreezing and its opponent differ in."""
    if control == CONTROL:
        return f"`{CONTROL}` has the same learning rates and schedule. "
    return (
        f"Its learning rates and schedule differ from those of `{AT_ONCE}`, too, so that the "
        f"phases need not be the cause; the arm `{CONTROL}` has the same ones. "
    )


def _cost(results: Sequence[Result]) -> str:
    mine, theirs = (
        mean_interval(numbers(having_all, arm, "train_flops").values())
        for having_all in [having(results, **{SETTING: max(size_names(results))})]
        for arm in (GRADUAL, opponent(results))
    )
    if not mine or not theirs or not mine.mean or not theirs.mean:
        return ""
    factor = formatting.factor(mine.mean, theirs.mean, "training FLOPs")
    return f"On the most sentences it takes {factor}. "
