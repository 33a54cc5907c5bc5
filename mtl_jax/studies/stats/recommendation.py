"""Which scenario to use: a rule over the numbers, and sentences that say how sure it is.

No measured time has a part in it: cost is the training FLOPs, which are counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING

from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.comparisons import against
from mtl_jax.studies.stats.intervals import (
    FEWEST_FOR_T,
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
    control_heads,
    evaluation_split,
    numbers,
    qualities,
    trained_arms,
)
from mtl_jax.studies.stats.wording import too_few_seeds

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
    noun: str = "scenario",
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
        if _within(each, best, tolerance)
        or (t_value is not None and t_value > LEVEL and _within(each, best, MOST_LOSS))
    ]
    return best, level, best if best.flops is None else level[0]


def _paired_on(
    one: Mapping[int, float], other: Mapping[int, float], seeds: Sequence[int]
) -> PairedDifference:
    found = paired_difference({seed: one[seed] for seed in seeds}, other)
    if found is None:
        raise ValueError("ranked arms share seeds")
    return found


def explain(advice: Recommendation) -> list[str]:
    """The recommendation in plain sentences: the choice, and how sure it is."""
    return [
        _choice(advice),
        *_second(advice),
        *_uncounted(advice),
        *_unranked(advice),
        *_evidence(advice),
    ]


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
        if candidate not in traded and candidate not in (advice.chosen, advice.runner_up)
    ]
    if dominated:
        verb = "takes" if len(dominated) == 1 else "take"
        arms = formatting.series([advice.name(arm) for arm in dominated])
        sentences.append(
            f"{arms} {verb} at least as many training FLOPs as {advice.name(advice.chosen.arm)} "
            "and did no better on validation."
        )
    return sentences


def _within(candidate: Candidate, best: Candidate, tolerance: float) -> bool:
    # Exactly at the tolerance counts, whichever way the subtraction happens to round.
    return best.validation - candidate.validation <= tolerance or math.isclose(
        best.validation - candidate.validation, tolerance, abs_tol=1e-9
    )


def _is_trade(candidate: Candidate, advice: Recommendation) -> bool:
    """Whether an arm offers something for what it takes: cheaper, or better on validation.

    The runner-up has a sentence of its own. Of what was not counted nothing is known.
    """
    if candidate in (advice.chosen, advice.runner_up):
        return False
    if candidate.flops is None or advice.chosen.flops is None:
        return True
    cheaper = candidate.flops < advice.chosen.flops
    return cheaper or candidate.validation > advice.chosen.validation


def _choice(advice: Recommendation) -> str:
    chosen, best, count = advice.chosen, advice.best, len(advice.candidates)
    name, of = advice.name(chosen.arm), f"{count} {advice.noun}s"
    scale = "validation macro-F1 (the mean of tasks and seeds)"
    if count == 1:
        return f"{name} is the only {advice.noun} that is ranked, so there is no choice to make."
    if len(advice.level) == 1:
        return (
            f"Use {name}: of {of} it has the best {scale}, {formatting.fixed(chosen.validation)}. "
            f"{_separated(advice)}"
        )
    names = formatting.series([advice.name(each.arm) for each in advice.level])
    alike = f"Of {of} nothing separates {names}: their {scale} is {_alike(advice)}."
    if not advice.counted:
        return f"Use {name}, the best on validation. {alike}"
    if chosen is best:
        own = f"the best, too, with {formatting.fixed(chosen.validation)}"
    else:
        own = (
            f"with {formatting.fixed(chosen.validation)} against "
            f"{formatting.fixed(best.validation)} of "
            f"{advice.name(best.arm)}, and {_cost(chosen, best)}"
        )
    return f"Use {name}. {alike} {name} is the cheapest of them by training FLOPs: {own}."


def _separated(advice: Recommendation) -> str:
    """That all others are behind the best, and by which rule."""
    below = f"Every other is more than {advice.tolerance:g} below it"
    if len(advice.seeds) < FEWEST_FOR_T:
        return f"{below}."
    return (
        f"{below}, and either told apart from it by the t-test with Holm's correction, or "
        f"more than {MOST_LOSS:g} below."
    )


def _alike(advice: Recommendation) -> str:
    """How near the arms are that nothing separates, and by which rule."""
    near = f"within {advice.tolerance:g} of the best"
    if all(_within(each, advice.best, advice.tolerance) for each in advice.level):
        return near
    return (
        f"{near}, or not told apart from it by the t-test with Holm's correction and at "
        f"most {MOST_LOSS:g} below"
    )


def _second(advice: Recommendation) -> list[str]:
    """The runner-up, and why it is not the choice."""
    second, chosen = advice.runner_up, advice.chosen
    if second is None:
        return []
    lost = chosen.validation - second.validation
    side = "below" if lost > 0 else "above"
    apart = f"{formatting.fixed(abs(lost))} {side} it on validation"
    scored = "as good on validation" if abs(lost) < 0.0005 else apart
    if second is advice.best:
        scored = f"the best on validation by {formatting.fixed(abs(lost))}"
    cost = f", with {_cost(second, chosen)}" if advice.counted else ""
    level = second in advice.level and second is not advice.best and advice.counted
    separates = ": nothing separates it from the best either" if level else ""
    return [f"The runner-up is {advice.name(second.arm)}, {scored}{cost}{separates}."]


def _uncounted(advice: Recommendation) -> list[str]:
    if advice.counted:
        return []
    return [
        "The cost was not counted: some of these results have no training FLOPs, and measured "
        "times decide nothing."
    ]


def _unranked(advice: Recommendation) -> list[str]:
    found = []
    if len(advice.seeds) < advice.held:
        these = formatting.series([str(seed) for seed in advice.seeds])
        seeds = f"seed{'' if len(advice.seeds) == 1 else 's'} {these}"
        found.append(f"They are ranked on {seeds}, as not all of them have the others.")
    if advice.left_out:
        arms = "; ".join(
            f"{advice.name(arm)}, {formatting.count_of(count, 'seed')}"
            for arm, count in advice.left_out.items()
        )
        found.append(f"Not ranked, for want of a seed that the others have: {arms}.")
    if advice.controls:
        arms = "; ".join(
            f"{advice.name(arm)}, whose {formatting.series(list(heads))} "
            f"head{'s' * (len(heads) > 1)} never trained"
            for arm, heads in advice.controls.items()
        )
        found.append(f"Not ranked, being a control: {arms}.")
    return found


def _evidence(advice: Recommendation) -> list[str]:
    """What the comparison split says of the chosen arm, and how far that can be trusted."""
    score, difference, second = advice.score, advice.difference, advice.runner_up
    if score is None:
        return []
    where = (
        "On the test split, which had no part in the choice, it scores"
        if advice.split == "test"
        else "There is no test split, so what follows is measured on the validation split that "
        "the choice was made on, and flatters the choice; there it scores"
    )
    where = where.replace("it scores", f"{advice.name(advice.chosen.arm)} scores")
    head = f"{where} {formatting.fixed(score.mean)} {formatting.plus_minus(score)}".rstrip()
    if second is None or difference is None:
        return [f"{head}.", *_seeds(score.n)]
    gap = difference.interval
    compared = f"{head}, {_against(gap.mean)} the runner-up."
    return [compared, *_certainty(advice, difference), *_seeds(gap.n)]


def _certainty(advice: Recommendation, difference: PairedDifference) -> list[str]:
    gap, family = difference.interval, formatting.count_of(advice.family, "comparison")
    if gap.n == 1:
        return []
    if few := too_few_seeds(gap.n):
        return [f"{few.capitalize()}."]
    if gap.low is None or advice.p_value is None:
        return []
    verb = "tells" if advice.p_value <= LEVEL else "does not tell"
    losses = "no loss" if gap.low >= -advice.tolerance else "losses"
    over = "over seeds and texts" if gap.over_texts else "over seeds alone"
    return [
        f"The 95 % interval of that difference, {over}, is {formatting.limits(gap)}, which holds "
        f"{losses} of more than {advice.tolerance:g}; the test {verb} the two apart "
        f"(p {formatting.p_equals(advice.p_value)}, corrected over {family})."
    ]


def _seeds(n: int) -> list[str]:
    if n == 1:
        return [
            "This rests on 1 seed: there is no interval, and a difference may be the luck of "
            f"that seed. Run at least {FEWEST_FOR_T}."
        ]
    return [f"It rests on {n} seeds."]


def _trade(other: Candidate, advice: Recommendation, results: Sequence[Result]) -> str:
    chosen, name = advice.chosen, advice.name(other.arm)
    difference = paired_difference(
        qualities(results, other.arm, advice.split), qualities(results, chosen.arm, advice.split)
    )
    cost = f", for {_cost(other, chosen)}" if advice.counted else ""
    if difference is None:
        return f"{name} shares no {advice.split} score with {advice.name(chosen.arm)}{cost}."
    gap = difference.interval
    verb = "gives up" if gap.mean < 0 else "gains"
    # A loss is written as a positive amount given up, and its limits turn round with it.
    amount = Interval(-gap.mean, _negative(gap.high), _negative(gap.low), gap.n)
    shown = amount if gap.mean < 0 else gap
    limits = f" {_plain_limits(shown)}" if shown.low is not None else ""
    unsure = ", an interval that includes 0," if gap.excludes(0) is False else ""
    return (
        f"{name} {verb} {formatting.fixed(shown.mean)}{limits}{unsure} of {advice.split} macro-F1 "
        f"against {advice.name(chosen.arm)}{cost}."
    )


def _against(difference: float) -> str:
    if abs(difference) < 0.0005:
        return "the same to three decimals as"
    side = "above" if difference > 0 else "below"
    return f"{formatting.fixed(abs(difference))} {side}"


def _cost(one: Candidate, other: Candidate) -> str:
    if not one.flops or not other.flops:
        return (
            f"{formatting.flops(one.flops)} training FLOPs against {formatting.flops(other.flops)}"
        )
    return formatting.factor(one.flops, other.flops, "training FLOPs")


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _plain_limits(interval: Interval) -> str:
    return f"[{formatting.fixed(interval.low)}, {formatting.fixed(interval.high)}]"
