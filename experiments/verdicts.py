"""When a claim is supported, not supported or undecided: the rule, apart from any claim.

The rule for a difference that the seed draws, of a score or of a gap between scores:

* supported: Holm's p of the paired permutation test is at most 0.05, in the claimed direction;
* not supported: the same in the other direction; or the bootstrap interval lies on the wrong
  side of 0; or it lies within 0.01 of 0, so that any effect is too small to matter;
* undecided: everything else, and the reason says what is lacking.

The interval decides only from six seeds on. With fewer, no p-value reaches 0.05, however
large the difference; and an interval of so few covers less than its 95 %, so that it would
refute claims on evidence that could never support one.

Numbers that the seed does not draw are compared directly: counts of parameters and bytes
are the same in every run, and training times scatter with the machine's load alone.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

from experiments import wording
from experiments.arms import Result, by_setting, numbers, per_seed
from experiments.resampling import seeds_needed, smallest_p
from experiments.statistics import LEVEL, PairedDifference, holm, paired_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MARGIN = 0.01
"""macro-F1, in [0, 1], below which an effect is too small to matter"""

# With n runs of each, all of one beating all of the other by luck has a chance of
# n! n! / (2n)!: 1 in 20 for 3.
_FEWEST_TIMES = 3


class Verdict(enum.StrEnum):
    """What a study says of a claim."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    UNDECIDED = "undecided"
    NOT_ASKED = "not asked by this study"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A verdict, the number that says so, and what an undecided one lacks."""

    what: str
    """what was compared"""
    verdict: Verdict
    number: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A difference between two arms that a claim says the sign of."""

    what: str
    difference: PairedDifference
    claimed: int
    """1 where the claim says that the difference is above 0, -1 where below"""


def contrast(
    results: Sequence[Result],
    pair: Sequence[str],
    number: Callable[[Result], float | None],
    what: str,
    claimed: int = 1,
) -> tuple[Comparison | Finding, list[Comparison]]:
    """Arm minus reference: over all settings and, where there are several, in each.

    Over all settings, each seed gives the mean of its differences; a seed that lacks a
    setting would give the mean of others, and is left out.

    Args:
        results: Lines of ``results.jsonl``.
        pair: The arm and its reference.
        number: Of a line; None where the line lacks it.
        what: The number in words.
        claimed: See ``Comparison``.

    Returns:
        The comparison over all settings, undecided where no seed has them all; and those in
        each setting.
    """
    shared: dict[str, tuple[dict[int, float], dict[int, float]]] = {}
    for setting, lines in by_setting(results).items():
        arm, reference = (per_seed(lines, name, number) for name in pair)
        if arm.keys() & reference.keys():
            shared[setting] = (arm, reference)
    arm, reference = (_averages([both[side] for both in shared.values()]) for side in (0, 1))
    text = f"{what}, `{pair[0]}` minus `{pair[1]}`"
    details = [
        Comparison(setting or "no setting", difference, claimed)
        for setting, both in shared.items()
        if len(shared) > 1 and (difference := paired_difference(*both)) is not None
    ]
    overall = paired_difference(arm, reference)
    if overall is None:
        return Finding(text, Verdict.UNDECIDED, "", "no seed has all that is compared"), details
    return Comparison(text, overall, claimed), details


def judge(comparisons: Sequence[Comparison], asked: int) -> list[Finding]:
    """The verdict on each comparison of a family, with Holm's correction over all of them.

    Args:
        comparisons: The family.
        asked: Seeds that the study asks for; fewer are said to be so.
    """
    corrected = holm([each.difference.p_value for each in comparisons])
    return [
        _decide(each, p_value, len(comparisons), asked)
        for each, p_value in zip(comparisons, corrected, strict=True)
        if p_value is not None
    ]


def below(
    results: Sequence[Result], arm: str, others: Sequence[str], key: str
) -> tuple[Verdict, float | None, float | None]:
    """Whether every run of an arm has less of something than every run of the others.

    Args:
        results: Lines of ``results.jsonl``.
        arm: Of which the claim says that it has less.
        others: The arms it is compared with.
        key: Of a line: a count, or ``train_seconds``. Times are compared setting by
            setting, and only where each arm has 3 runs of a setting, unless nothing is
            trained, which takes no time in any run.

    Returns:
        The verdict, the arm's mean, and the lowest mean of the others.
    """
    groups = by_setting(results).values()

    def runs(name: str) -> list[list[float]]:
        return [list(numbers(lines, name, key).values()) for lines in groups]

    verdicts = {
        _less(mine, theirs, key == "train_seconds")
        for other in others
        for mine, theirs in zip(runs(arm), runs(other), strict=True)
        if mine and theirs
    }
    means = [mean for other in others if (mean := _mean(runs(other))) is not None]
    return all_of(verdicts), _mean(runs(arm)), min(means, default=None)


def all_of(verdicts: set[Verdict]) -> Verdict:
    """The verdict on a claim of several parts, which holds if all of them do."""
    for verdict in (Verdict.NOT_SUPPORTED, Verdict.UNDECIDED, Verdict.SUPPORTED):
        if verdict in verdicts:
            return verdict
    return Verdict.UNDECIDED


def _less(mine: Sequence[float], theirs: Sequence[float], timed: bool) -> Verdict:
    if timed and max(mine) > 0 and min(len(mine), len(theirs)) < _FEWEST_TIMES:
        return Verdict.UNDECIDED
    if max(mine) < min(theirs):
        return Verdict.SUPPORTED
    if timed and min(mine) <= max(theirs):
        return Verdict.UNDECIDED
    return Verdict.NOT_SUPPORTED


def _decide(comparison: Comparison, p_value: float, family: int, asked: int) -> Finding:
    interval, claimed = comparison.difference.interval, comparison.claimed
    of = "" if interval.n >= asked else f" of {asked}"
    number = (
        f"{wording.signed(interval.mean)} {wording.limits(interval)}".rstrip()
        + f", Holm p {wording.p_text(p_value)}, "
        + (f"{interval.n}{of} seeds" if of else wording.count_of(interval.n, "seed"))
    )

    def finding(verdict: Verdict, reason: str) -> Finding:
        return Finding(comparison.what, verdict, number, reason)

    if p_value <= LEVEL:
        if interval.mean * claimed > 0:
            return finding(Verdict.SUPPORTED, "")
        return finding(Verdict.NOT_SUPPORTED, "the difference has the other sign")
    if interval.low is not None and interval.high is not None and smallest_p(interval.n) <= LEVEL:
        low, high = sorted((claimed * interval.low, claimed * interval.high))
        if high < 0:
            return finding(Verdict.NOT_SUPPORTED, "the interval lies on the wrong side of 0")
        if low >= -MARGIN and high <= MARGIN:
            reason = f"the interval holds no effect above {MARGIN:g}"
            return finding(Verdict.NOT_SUPPORTED, reason)
    needed = seeds_needed(family, LEVEL)
    if interval.n < needed:
        least = wording.p_text(min(1.0, family * smallest_p(interval.n)))
        return finding(
            Verdict.UNDECIDED,
            f"too few seeds: {interval.n} can give no Holm p below {least}; {needed} could",
        )
    return finding(Verdict.UNDECIDED, "the seeds scatter too widely")


def _averages(settings: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean over settings, of each seed that every setting has."""
    if not settings:
        return {}
    seeds = set.intersection(*(set(values) for values in settings))
    return {seed: sum(v[seed] for v in settings) / len(settings) for seed in sorted(seeds)}


def _mean(runs: Sequence[Sequence[float]]) -> float | None:
    values = [value for group in runs for value in group]
    return sum(values) / len(values) if values else None
