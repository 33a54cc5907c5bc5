"""A recommendation in plain sentences: what to use, instead of what, and how sure that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.intervals import (
    FEWEST_FOR_T,
    LEVEL,
    Interval,
    PairedDifference,
    mean_interval,
    paired_difference,
)
from mtl_jax.studies.stats.recommendation import MOST_LOSS, Candidate, Recommendation, is_within
from mtl_jax.studies.stats.results import REFERENCE, Result, numbers, qualities, tasks_of
from mtl_jax.studies.stats.results import score as score_on
from mtl_jax.studies.stats.wording import too_few_seeds

if TYPE_CHECKING:
    from collections.abc import Sequence


def explain(advice: Recommendation) -> list[str]:
    """The recommendation in plain sentences: the choice, and how sure it is."""
    return [
        _choice(advice),
        *_second(advice),
        *_uncounted(advice),
        *_unranked(advice),
        *_evidence(advice),
    ]


def answer(advice: Recommendation, results: Sequence[Result]) -> str:
    """The recommendation in two sentences: what to use and what it reaches, and why.

    Args:
        advice: The recommendation.
        results: The lines of ``results.jsonl`` that it was made from.
    """
    return f"{_use(advice, results)} {_why(advice)}"


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


def _use(advice: Recommendation, results: Sequence[Result]) -> str:
    """What to use, and what it reaches for which tasks."""
    name = advice.name(advice.chosen.arm)
    if advice.score is None:
        return f"Use {name}."
    # A task none of whose texts has a label there has no part in the mean.
    measured = [
        task
        for task in tasks_of(results)
        if any(score_on(result.get(advice.split), task) is not None for result in results)
    ]
    tasks = formatting.series(measured)
    score = f"{formatting.fixed(advice.score.mean)} {formatting.plus_minus(advice.score)}".rstrip()
    reached = formatting.score_of(score, advice.score_name)
    words = f"Use {name}: it reaches {reached} on the {advice.split} split ({tasks}"
    words += ", their mean)" if len(measured) > 1 else ")"
    flops, reference = (
        mean_interval(numbers(results, arm, "train_flops").values())
        for arm in (advice.chosen.arm, REFERENCE)
    )
    if flops is None or not advice.counted:
        return f"{words}."
    ratio = formatting.ratio(flops.mean, reference.mean if reference else None)
    compared = f", {ratio} those of `{REFERENCE}`" if ratio and name != f"`{REFERENCE}`" else ""
    return f"{words} for {formatting.flops(flops.mean)} training FLOPs{compared}."


def _why(advice: Recommendation) -> str:
    """Why that arm and no other, in one sentence."""
    if len(advice.candidates) == 1:
        return f"It is the only {advice.noun} that is ranked, so there was no choice to make."
    second = advice.runner_up
    behind = ""
    if second is not None:
        lost = advice.chosen.validation - second.validation
        side = "below" if lost >= 0 else "above"
        apart = f"{formatting.fixed(abs(lost))} {side} it"
        behind = f"; the runner-up is {advice.name(second.arm)}, {apart}"
    if len(advice.level) == 1:
        count = f"{len(advice.candidates)} {advice.noun}s"
        ranked = f"the {count} that are ranked" if advice.unranked else count
        return f"On validation it is the best of {ranked}{behind}."
    others = [advice.name(each.arm) for each in advice.level if each != advice.chosen]
    cheapest = ", and it is the cheapest of these" if advice.counted else ""
    return f"On validation nothing separates it from {formatting.series(others)}{cheapest}{behind}."


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
    scale = f"validation {advice.score_name} (the mean of tasks and seeds)"
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
        own = f" and also the best, with {formatting.fixed(chosen.validation)}"
    else:
        own = (
            f", with {formatting.fixed(chosen.validation)} against "
            f"{formatting.fixed(best.validation)} of "
            f"{advice.name(best.arm)}, and {_cost(chosen, best)}"
        )
    return f"Use {name}. {alike} {name} is the cheapest of them by training FLOPs{own}."


def _separated(advice: Recommendation) -> str:
    """That all others are behind the best, and by which rule."""
    below = f"Every other is more than {advice.tolerance:g} below it"
    if len(advice.seeds) < FEWEST_FOR_T:
        return f"{below}."
    return (
        f"{below}; those at most {MOST_LOSS:g} below are told apart from it by the t-test with "
        "Holm's correction."
    )


def _alike(advice: Recommendation) -> str:
    """How near the arms are that nothing separates, and by which rule."""
    near = f"within {advice.tolerance:g} of the best"
    if all(is_within(each, advice.best, advice.tolerance) for each in advice.level):
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
    if gap.n > 1 and (few := too_few_seeds(gap.n)):
        return [compared, f"{formatting.capital(few)}."]
    return [compared, *_certainty(advice, difference), *_seeds(gap.n)]


def _certainty(advice: Recommendation, difference: PairedDifference) -> list[str]:
    gap, family = difference.interval, formatting.count_of(advice.family, "comparison")
    if gap.low is None or advice.p_value is None:
        return []
    verb = "tells" if advice.p_value <= LEVEL else "does not tell"
    verdict = "rules out" if gap.low >= -advice.tolerance else "includes"
    over = "over seeds and texts" if gap.over_texts else "over seeds alone"
    return [
        f"The 95 % interval of that difference, {over}, is {formatting.limits(gap)}, which "
        f"{verdict} losses of more than {advice.tolerance:g}; the test {verb} the two apart "
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
        f"{name} {verb} {formatting.fixed(shown.mean)}{limits}{unsure} of {advice.split} "
        f"{advice.score_name} against {advice.name(chosen.arm)}{cost}."
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
