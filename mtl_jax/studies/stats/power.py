"""What difference a study can tell: before it starts from its sizes, after it from its results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import scipy.optimize
import scipy.stats

from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.intervals import FEWEST_FOR_T, LEVEL
from mtl_jax.studies.stats.results import (
    REFERENCE,
    Result,
    control_heads,
    evaluation_split,
    qualities,
    trained_arms,
)
from mtl_jax.studies.stats.two_way import Estimate, estimate

CHANCE = 0.85
"""with which a difference that a study "can tell" is told from none"""

SCATTER = 0.02
"""macro-F1: standard deviation of the difference of two arms over seeds, where nothing is known"""

DISAGREEMENT = 0.1
"""part of the texts of a class on which one of two arms alone is right, where nothing is known"""


def text_error(counts: Collection[Collection[int]]) -> float:
    """The standard error that the draw of test texts leaves in a difference of macro-F1.

    Where on a part d, ``DISAGREEMENT``, of the n_k texts of class k one of two arms alone is right,
    the difference of their recalls has the variance d / n_k; macro-F1 is taken for the mean recall,
    of K classes ``sqrt(Σ_k d / n_k) / K``, and the score of a study is the mean over tasks, whose
    errors are taken for independent.

    Args:
        counts: Of each task the texts of each class; classes without any are left out.

    Returns:
        0 where no class has a text.
    """
    variances = [
        sum(DISAGREEMENT / count for count in classes) / len(classes) ** 2
        for each in counts
        if (classes := [count for count in each if count])
    ]
    return math.sqrt(sum(variances)) / len(variances) if variances else 0.0


def detectable(
    seeds: int,
    scatter: float,
    over_texts: float,
    comparisons: int = 1,
    chance: float = CHANCE,
) -> float | None:
    """The smallest difference that is told from none with a given chance.

    By the t-test over seeds and texts at ``LEVEL`` over the number of comparisons, see ``two_way``:
    with ``SE² = scatter² / seeds + over_texts²``, of which texts are known well, on Satterthwaite's
    degrees of freedom.

    Args:
        seeds: Of each arm.
        scatter: Standard deviation of a seed's difference.
        over_texts: What the draw of texts adds, see ``text_error``.
        comparisons: In the family.
        chance: With which it is told.

    Returns:
        None of fewer than three seeds, which are not tested.
    """
    if seeds < FEWEST_FOR_T:
        return None
    between = scatter**2 / seeds
    variance = between + over_texts**2
    if variance == 0:
        return 0.0
    freedom = min(variance**2 * (seeds - 1) / between**2 if between else 1e6, 1e6)
    limit = scipy.stats.t.isf(LEVEL / comparisons / 2, freedom)

    def short(shift: float) -> float:
        return float(scipy.stats.nct.sf(limit, freedom, shift)) - chance

    found: Any = scipy.optimize.brentq(short, 0.0, 10 * limit + 10)
    return float(found) * math.sqrt(variance)


def before(
    seeds: int,
    arms: int,
    counts: Mapping[str, Sequence[int]],
    pilot: Sequence[Result] = (),
) -> str:
    """What a study can tell, in a sentence, before it starts.

    Args:
        seeds: Of each arm.
        arms: That train something.
        counts: Of each task that has classes the test texts of each.
        pilot: Results of the same arms, where there are some: their scatter takes the place of the
            stated one.
    """
    if seeds < FEWEST_FOR_T or arms < 2:
        return (
            f"this study cannot tell any difference between arms: a test needs {FEWEST_FOR_T} "
            f"seeds and 2 trained arms, and there are {formatting.count_of(seeds, 'seed')} and "
            f"{formatting.count_of(arms, 'trained arm')}"
        )
    found = differences(pilot)
    if found:
        # Of few seeds each; together they know more.
        scatter = math.sqrt(statistics.fmean(e.over_seeds**2 * e.seeds for e in found))
        texts = statistics.median(each.shared for each in found)
        done = formatting.count_of(len(found), "comparison")
        known = f"if differences vary as in the {done} done so far"
    else:
        scatter, texts = SCATTER, text_error(list(counts.values()))
        known = (
            f"if differences vary by {SCATTER:g} between seeds, and on {100 * DISAGREEMENT:g} % of "
            "the test texts just one of two arms is right"
        )
    smallest = detectable(seeds, scatter, texts, arms - 1)
    return (
        f"with {formatting.count_of(seeds, 'seed')} and "
        f"{formatting.count_of(arms - 1, 'comparison')}, a difference of "
        f"{formatting.fixed(smallest)} macro-F1 is detected with a probability of "
        f"{100 * CHANCE:g} %, {known}; the test texts alone leave a standard error of "
        f"{formatting.fixed(texts)}"
    )


def differences(results: Sequence[Result]) -> list[Estimate]:
    """What each arm has more than one of them, with its errors, of those that share three seeds.

    Args:
        results: Lines of ``results.jsonl``, of one setting. The one is full fine-tuning; in a study
            without it the last of the arms that are no controls, which then have no part.
    """
    arms, split = trained_arms(results), evaluation_split(results)
    if REFERENCE not in arms:
        arms = [arm for arm in arms if arm not in control_heads(results)]
    reference = REFERENCE if REFERENCE in arms else (arms or [""])[-1]
    base, found = qualities(results, reference, split), []
    for arm in arms:
        mine = qualities(results, arm, split)
        shared = mine.keys() & base.keys()
        if arm != reference and len(shared) >= FEWEST_FOR_T:
            found.append(estimate([mine[seed] - base[seed] for seed in sorted(shared)]))
    return [each for each in found if each is not None]


def after(results: Sequence[Result]) -> dict[str, Any] | None:
    """What the study's sizes have left: the errors of its differences, and what they can tell.

    Args:
        results: Lines of ``results.jsonl``, of one setting.

    Returns:
        The medians over comparisons: ``seeds``; ``over_seeds`` and ``over_texts``, the standard
        errors that either alone leaves, the latter None where predictions are not known;
        ``error``, that of both; and ``detectable``. None where nothing can be compared.
    """
    found = differences(results)
    if not found:
        return None
    seeds = min(each.seeds for each in found)
    scatter = statistics.median(each.over_seeds * math.sqrt(each.seeds) for each in found)
    shared = statistics.median(each.shared for each in found)
    over_texts = [each.over_texts for each in found if each.over_texts is not None]
    return {
        "seeds": seeds,
        "over_seeds": statistics.median(each.over_seeds for each in found),
        "over_texts": statistics.median(over_texts) if over_texts else None,
        "error": statistics.median(each.error for each in found),
        "detectable": detectable(seeds, scatter, shared, len(found)),
        "comparisons": len(found),
    }


def after_text(results: Sequence[Result]) -> str:
    """``after`` in a sentence; empty where nothing can be compared."""
    found = after(results)
    if found is None:
        return ""
    texts = (
        "that of other texts is not known, as the predictions were not kept"
        if found["over_texts"] is None
        else f"other texts alone one of {formatting.fixed(found['over_texts'])}"
    )
    return (
        f"A difference between two arms has a standard error of {formatting.fixed(found['error'])} "
        f"(the median): other seeds alone leave one of {formatting.fixed(found['over_seeds'])}, "
        f"{texts}. With {formatting.count_of(found['seeds'], 'seed')} and "
        f"{formatting.count_of(found['comparisons'], 'comparison')}, a difference of "
        f"{formatting.fixed(found['detectable'])} is detected with a probability of "
        f"{100 * CHANCE:g} %."
    )
