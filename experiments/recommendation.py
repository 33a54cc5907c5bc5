"""Which scenario to use: a rule over the numbers, and sentences that say how sure it is."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from experiments import wording
from experiments.arms import (
    REFERENCE,
    Finished,
    Result,
    evaluation_split,
    numbers,
    qualities,
    trained_arms,
    unfinished,
)
from experiments.compare import against
from experiments.resampling import seeds_needed, smallest_p
from experiments.statistics import (
    LEVEL,
    Interval,
    PairedDifference,
    mean_interval,
    paired_difference,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An arm that may be recommended: what it costs, and how it does on validation."""

    arm: str
    seconds: float
    """mean training time over seeds"""
    validation: float
    """mean macro-F1 over tasks and seeds; the choice rests on this alone"""


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """The chosen arm, what it was chosen from, and how it compares."""

    chosen: Candidate
    best: Candidate
    """the highest validation mean"""
    candidates: tuple[Candidate, ...]
    """every eligible arm, cheapest first"""
    left_out: Mapping[str, Finished]
    """trained arms that are not ranked, as they lack seeds that another arm has"""
    tolerance: float
    split: str
    """where the comparisons below were measured"""
    score: Interval | None
    """the chosen arm's macro-F1 on ``split``"""
    opponent: Candidate | None
    """what the chosen arm is compared with: full fine-tuning, else the best other arm"""
    difference: PairedDifference | None
    """chosen minus opponent on ``split``, over shared seeds"""
    p_value: float | None
    """of that difference, as one of the family of scenarios against one reference"""
    family: int
    """comparisons of that family"""


def recommend(results: Sequence[Result], tolerance: float = TOLERANCE) -> Recommendation | None:
    """Chooses the cheapest arm that is within ``tolerance`` of the best on validation.

    The test split has no part in the choice, so its numbers stay an unbiased estimate for
    the arm that was chosen. ``all_frozen`` trains nothing and is not eligible. Nor is an arm
    that lacks seeds, unless all do; it may still be the opponent, being paired by seed. Equal
    cost is decided by the higher validation mean, then by the fixed order of the arms.

    Args:
        results: Lines of ``results.jsonl``.
        tolerance: Macro-F1, in [0, 1], that one may give up for a lower cost.

    Returns:
        None where no arm has both validation scores and a training time.
    """
    found = []
    for arm in trained_arms(results):
        validation = mean_interval(qualities(results, arm, "validation").values())
        seconds = mean_interval(numbers(results, arm, "train_seconds").values())
        if validation and seconds:
            found.append(Candidate(arm, seconds.mean, validation.mean))
    if not found:
        return None
    lacking = unfinished(results)
    whole = [candidate for candidate in found if candidate.arm not in lacking]
    left_out = {each.arm: lacking[each.arm] for each in found if whole and each not in whole}
    candidates = sorted(whole or found, key=lambda each: (each.seconds, -each.validation))
    best = max(candidates, key=lambda candidate: candidate.validation)
    chosen = next(candidate for candidate in candidates if _within(candidate, best, tolerance))
    others = [candidate for candidate in candidates if candidate is not chosen]
    opponent = next(
        (each for each in found if each.arm == REFERENCE and each is not chosen),
        max(others, key=lambda candidate: candidate.validation, default=None),
    )
    split = evaluation_split(results)
    scores = qualities(results, chosen.arm, split)
    pair = (chosen.arm, opponent.arm if opponent else chosen.arm)
    # The family of the table of differences, so that a report has one p-value of a comparison;
    # the mirror image of a difference has the same.
    base = REFERENCE if REFERENCE in [each.arm for each in found] else pair[1]
    compared = against(results, base, split)
    return Recommendation(
        chosen=chosen,
        best=best,
        candidates=tuple(candidates),
        left_out=left_out,
        tolerance=tolerance,
        split=split,
        score=mean_interval(scores.values()),
        opponent=opponent,
        difference=paired_difference(scores, qualities(results, opponent.arm, split))
        if opponent
        else None,
        p_value=next((each.p_value for each in compared if each.arm in pair), None),
        family=len(compared),
    )


def explain(advice: Recommendation) -> list[str]:
    """The recommendation in plain sentences: the choice, and how sure it is."""
    return [_choice(advice), *_unranked(advice), *_evidence(advice)]


def alternatives(advice: Recommendation, results: Sequence[Result]) -> list[str]:
    """A sentence on what each other arm gives up, and for what.

    Args:
        advice: The recommendation that they are compared with.
        results: The lines of ``results.jsonl`` that it was made from.
    """
    traded = [arm for arm in advice.candidates if _is_trade(arm, advice)]
    sentences = [_trade(arm, advice, results) for arm in traded]
    dominated = [
        candidate.arm
        for candidate in advice.candidates
        if candidate not in traded and candidate not in (advice.chosen, advice.opponent)
    ]
    if dominated:
        verb = "costs" if len(dominated) == 1 else "cost"
        sentences.append(
            f"{wording.listing(dominated)} {verb} at least as much time as "
            f"`{advice.chosen.arm}` and did no better on validation."
        )
    return sentences


def _within(candidate: Candidate, best: Candidate, tolerance: float) -> bool:
    # Exactly at the tolerance counts, whichever way the subtraction happens to round.
    return best.validation - candidate.validation <= tolerance or math.isclose(
        best.validation - candidate.validation, tolerance, abs_tol=1e-9
    )


def _is_trade(candidate: Candidate, advice: Recommendation) -> bool:
    """Whether an arm offers something for what it takes: cheaper, or better on validation.

    The opponent has a sentence of its own.
    """
    if candidate in (advice.chosen, advice.opponent):
        return False
    cheaper = candidate.seconds < advice.chosen.seconds
    return cheaper or candidate.validation > advice.chosen.validation


def _choice(advice: Recommendation) -> str:
    chosen, best, count = advice.chosen, advice.best, len(advice.candidates)
    if count == 1:
        what = "results of every seed" if advice.left_out else "results"
        return f"`{chosen.arm}` is the only scenario with {what}, so there is no choice to make."
    if chosen is best:
        sentence = (
            f"Use `{chosen.arm}`: of {count} scenarios it has the best validation macro-F1 "
            f"({wording.fixed(chosen.validation)}, the mean of tasks and seeds), "
        )
        near = [c for c in advice.candidates if _within(c, best, advice.tolerance)]
        if len(near) == 1:
            return f"{sentence}and no other is within {advice.tolerance:g} of it."
        return f"{sentence}and no cheaper one is within {advice.tolerance:g} of it."
    return (
        f"Use `{chosen.arm}`: it takes the least training time of those of the {count} scenarios "
        f"whose validation macro-F1 (the mean of tasks and seeds) is within "
        f"{advice.tolerance:g} of the best, {wording.fixed(chosen.validation)} against "
        f"{wording.fixed(best.validation)} of `{best.arm}`, with {_time(chosen, best)}."
    )


def _unranked(advice: Recommendation) -> list[str]:
    if not advice.left_out:
        return []
    arms = "; ".join(f"`{arm}`, {finished}" for arm, finished in advice.left_out.items())
    return [f"Not ranked, for want of runs that others have: {arms}."]


def _evidence(advice: Recommendation) -> list[str]:
    """What the comparison split says of the chosen arm, and how far that can be trusted."""
    score, difference, opponent = advice.score, advice.difference, advice.opponent
    if score is None:
        return []
    where = (
        "On the test split, which had no part in the choice, it scores"
        if advice.split == "test"
        else "There is no test split, so what follows is measured on the validation split that "
        "the choice was made on, and flatters the chosen scenario; there it scores"
    )
    head = f"{where} {wording.fixed(score.mean)} {wording.plus_minus(score)}".rstrip()
    if opponent is None or difference is None:
        other = f" `{opponent.arm}` shares no seed with it." if opponent else ""
        return [f"{head}.{other}", *_seeds(score.n)]
    gap = difference.interval
    # The sentence on the choice has already said what the best arm costs.
    time = "" if opponent is advice.best else f", with {_time(advice.chosen, opponent)}"
    compared = f"{head}, {_against(gap.mean)} `{opponent.arm}`{time}."
    return [compared, *_certainty(advice, gap), *_seeds(gap.n)]


def _certainty(advice: Recommendation, gap: Interval) -> list[str]:
    if gap.low is None or advice.p_value is None:
        return []
    verb = "tell" if advice.p_value <= LEVEL else "do not tell"
    losses = "no loss" if gap.low >= -advice.tolerance else "losses"
    return [
        f"The 95 % bootstrap interval of that difference is {wording.limits(gap)}, which holds "
        f"{losses} of more than {advice.tolerance:g}; these seeds {verb} the two apart "
        f"(permutation p {wording.p_equals(advice.p_value)}, corrected over "
        f"{wording.count_of(advice.family, 'comparison')})."
    ]


def _seeds(n: int) -> list[str]:
    enough = seeds_needed(LEVEL)
    if n == 1:
        return [
            "This rests on 1 seed: there is no interval, and a difference may be the luck of "
            f"that seed. Run at least {enough}."
        ]
    if n >= enough:
        return [f"It rests on {n} seeds."]
    return [
        f"It rests on {n} seeds: a difference of so few has no 95 % bootstrap interval, and the "
        f"smallest p-value that a permutation test of {n} can give is 2/2^{n} = "
        f"{smallest_p(n):.4g}. Run at least {enough} to tell a difference from luck at {LEVEL:g}."
    ]


def _trade(other: Candidate, advice: Recommendation, results: Sequence[Result]) -> str:
    chosen = advice.chosen
    difference = paired_difference(
        qualities(results, other.arm, advice.split), qualities(results, chosen.arm, advice.split)
    )
    time = _time(other, chosen)
    if difference is None:
        return f"`{other.arm}` shares no seed with `{chosen.arm}`; it takes {time}."
    gap = difference.interval
    verb = "gives up" if gap.mean < 0 else "gains"
    # A loss is written as a positive amount given up, and its limits turn round with it.
    amount = Interval(-gap.mean, _negative(gap.high), _negative(gap.low), gap.n)
    shown = amount if gap.mean < 0 else gap
    limits = f" {_plain_limits(shown)}" if shown.low is not None else ""
    unsure = ", an interval that includes 0," if gap.excludes(0) is False else ""
    return (
        f"`{other.arm}` {verb} {wording.fixed(shown.mean)}{limits}{unsure} of {advice.split} "
        f"macro-F1 against `{chosen.arm}`, for {time}."
    )


def _against(difference: float) -> str:
    if abs(difference) < 0.0005:
        return "the same to three decimals as"
    side = "above" if difference > 0 else "below"
    return f"{wording.fixed(abs(difference))} {side}"


def _time(one: Candidate, other: Candidate) -> str:
    if one.seconds <= 0 or other.seconds <= 0:
        return f"{wording.duration(one.seconds)} of training against {other.seconds:.1f} s"
    return wording.factor(one.seconds, other.seconds, "training time")


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _plain_limits(interval: Interval) -> str:
    return f"[{wording.fixed(interval.low)}, {wording.fixed(interval.high)}]"
