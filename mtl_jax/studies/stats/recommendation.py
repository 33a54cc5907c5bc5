"""Which scenario to use: a rule over the numbers.

No measured time has a part in it: cost is the training FLOPs, which are counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING

from mtl_jax.studies.stats.comparisons import against
from mtl_jax.studies.stats.intervals import (
    LEVEL,
    Interval,
    PairedDifference,
    holm,
    mean_interval,
    paired_difference,
)
from mtl_jax.studies.stats.results import (
    REFERENCE,
    Result,
    arm_order,
    arms_of,
    control_heads,
    evaluation_split,
    numbers,
    qualities,
    score_name,
    trained_arms,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TOLERANCE = 0.01

MOST_LOSS = 0.03
"""macro-F1, in [0, 1], that no scatter of the seeds excuses"""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An arm that may be recommended: what it costs, and how it does on validation."""

    arm: str
    flops: float | None
    """mean training FLOPs over the ranked seeds; None where those of some arm were not counted"""
    validation: float
    """mean macro-F1 over tasks and the ranked seeds; the choice rests on this alone"""


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """The chosen arm, what it was chosen from, and how it compares."""

    chosen: Candidate
    best: Candidate
    """the highest validation mean"""
    candidates: tuple[Candidate, ...]
    """every ranked arm, cheapest first"""
    level: tuple[Candidate, ...]
    """those of them that nothing separates from the best, itself among them"""
    seeds: tuple[int, ...]
    """on which they are ranked, as all of them have these"""
    held: int
    """how many seeds some of them have"""
    controls: Mapping[str, Sequence[str]]
    """trained arms that are not ranked, with the tasks whose heads never trained"""
    left_out: Mapping[str, int]
    """trained arms that are not ranked, as they share no seed with the others; their seeds"""
    tolerance: float
    split: str
    """where the comparisons below were measured"""
    score: Interval | None
    """the chosen arm's macro-F1 on ``split``"""
    runner_up: Candidate | None
    """what would be chosen if the chosen arm were not there"""
    difference: PairedDifference | None
    """chosen minus runner-up on ``split``, over shared seeds"""
    p_value: float | None
    """of that difference, as one of the family of scenarios against one reference"""
    family: int
    """comparisons of that family"""
    noun: str
    """what an arm is"""
    names: Mapping[str, str]
    """what to call the arms, where that is not their name in code style"""
    unranked: bool
    """whether the study has an arm that is not ranked, be it one that trains nothing"""
    score_name: str
    """what their scores are called; see ``results.score_name``"""

    def name(self, arm: str) -> str:
        """What to call an arm."""
        return self.names.get(arm, f"`{arm}`")

    @property
    def counted(self) -> bool:
        """Whether the cost of every ranked arm was counted."""
        return self.chosen.flops is not None


def recommend(
    results: Sequence[Result],
    tolerance: float = TOLERANCE,
    noun: str = "arm",
    names: Mapping[str, str] | None = None,
) -> Recommendation | None:
    """Chooses, of the arms that nothing separates from the best on validation, the cheapest.

    Nothing separates an arm from the best one where its mean is within ``tolerance``; or where
    the t-test over seeds and texts, with Holm's correction over the ranked arms, does not tell the
    two apart, and it is at most ``MOST_LOSS`` below. There is a test from three seeds on. The
    cheapest has the fewest training FLOPs; where these were not counted, the best is chosen.

    Ranked are the arms all of whose heads were trained, on the seeds that all of them have; an
    arm that shares no seed with most of them is left out. The test split has no part in the
    choice, so its numbers stay an unbiased estimate for the arm that was chosen. Ties go to the
    higher validation mean, then to the fixed order of the arms.

    Args:
        results: Lines of ``results.jsonl``.
        tolerance: Macro-F1, in [0, 1], that one may give up for a lower cost.
        noun: What an arm is.
        names: What to call the arms; by default their name in code style.

    Returns:
        None where no arm that may be ranked has validation scores.
    """
    found = {arm: qualities(results, arm, "validation") for arm in trained_arms(results)}
    found = {arm: scores for arm, scores in found.items() if scores}
    controls = {a: heads for a, heads in control_heads(results).items() if a in found}
    scores = {arm: each for arm, each in found.items() if arm not in controls}
    if not scores:
        return None
    arms, seeds = _comparable(scores)
    candidates = _candidates(results, scores, arms, seeds)
    best, level, chosen = _choice_of(candidates, scores, seeds, tolerance)
    others = [each for each in candidates if each is not chosen]
    runner_up = _choice_of(others, scores, seeds, tolerance)[2] if others else None
    split = evaluation_split(results)
    tested = qualities(results, chosen.arm, split)
    difference = compared = None
    family = 0
    if runner_up is not None:
        difference = paired_difference(tested, qualities(results, runner_up.arm, split))
        # The family of the table of differences where it has the two, so that a report has one
        # p-value of a comparison; the mirror image of a difference has the same.
        pair = (chosen.arm, runner_up.arm)
        base = REFERENCE if REFERENCE in pair else chosen.arm
        known = results if base == REFERENCE else [r for r in results if r["arm"] in arms]
        tests = against(known, base, split)
        compared, family = next((each for each in tests if each.arm in pair), None), len(tests)
    return Recommendation(
        chosen=chosen,
        best=best,
        candidates=tuple(candidates),
        level=tuple(level),
        seeds=tuple(seeds),
        held=len({seed for arm in arms for seed in scores[arm]}),
        controls=controls,
        left_out={arm: len(scores[arm]) for arm in scores if arm not in arms},
        tolerance=tolerance,
        split=split,
        score=mean_interval(tested.values()),
        runner_up=runner_up,
        difference=difference,
        p_value=compared.p_value if compared else None,
        family=family,
        noun=noun,
        names=names or {},
        unranked=len(arms) < len(arms_of(results)),
        score_name=score_name(results),
    )


def _comparable(scores: Mapping[str, Mapping[int, float]]) -> tuple[list[str], list[int]]:
    """The arms that are ranked, and the seeds that all of them have."""
    held = Counter(seed for each in scores.values() for seed in each)
    # The seed that most arms have, and of several the first.
    seed = min(held, key=lambda seed: (-held[seed], seed))
    arms = [arm for arm in scores if seed in scores[arm]]
    return arms, sorted(set.intersection(*(set(scores[arm]) for arm in arms)))


def _candidates(
    results: Sequence[Result],
    scores: Mapping[str, Mapping[int, float]],
    arms: Sequence[str],
    seeds: Sequence[int],
) -> list[Candidate]:
    """The ranked arms, cheapest first, of equal ones the better first."""
    flops = {arm: numbers(results, arm, "train_flops") for arm in arms}
    counted = all(seed in flops[arm] for arm in arms for seed in seeds)
    found = [
        Candidate(arm, _mean(flops[arm], seeds) if counted else None, _mean(scores[arm], seeds))
        for arm in arm_order(arms)
    ]
    return sorted(found, key=lambda each: (each.flops or 0, -each.validation))


def _mean(values: Mapping[int, float], seeds: Sequence[int]) -> float:
    return math.fsum(values[seed] for seed in seeds) / len(seeds)


def _choice_of(
    candidates: Sequence[Candidate],
    scores: Mapping[str, Mapping[int, float]],
    seeds: Sequence[int],
    tolerance: float,
) -> tuple[Candidate, list[Candidate], Candidate]:
    """The best of some candidates, those that nothing separates from it, and the choice."""
    best = max(candidates, key=lambda each: each.validation)
    t_values = holm(
        [
            _paired_on(scores[best.arm], scores[each.arm], seeds).t_p if each is not best else None
            for each in candidates
        ]
    )
    level = [
        each
        for each, t_value in zip(candidates, t_values, strict=True)
        if is_within(each, best, tolerance)
        or (t_value is not None and t_value > LEVEL and is_within(each, best, MOST_LOSS))
    ]
    return best, level, best if best.flops is None else level[0]


def _paired_on(
    one: Mapping[int, float], other: Mapping[int, float], seeds: Sequence[int]
) -> PairedDifference:
    found = paired_difference({seed: one[seed] for seed in seeds}, other)
    if found is None:
        raise ValueError("ranked arms share seeds")
    return found


def is_within(candidate: Candidate, best: Candidate, tolerance: float) -> bool:
    """Whether a candidate is at most ``tolerance`` below the best on validation."""
    # Exactly at the tolerance counts, whichever way the subtraction happens to round.
    return best.validation - candidate.validation <= tolerance or math.isclose(
        best.validation - candidate.validation, tolerance, abs_tol=1e-9
    )
