"""When a claim is supported, not supported or undecided: the rule, apart from any claim.

The rule for a difference that the seed draws, of a score or of a gap between scores. What
comes first decides:

1. not supported, as too small to matter: the whole 95 % bootstrap interval of the difference
   lies within 0.01 of 0. This criterion of equivalence holds the interval of each comparison
   by itself; it is that of two one-sided tests at 2.5 % each (Schuirmann, "A Comparison of the
   Two One-Sided Tests Procedure and the Power Approach", Journal of Pharmacokinetics and
   Biopharmaceutics 15, 1987), and says how large an effect can be, not whether there is one;
2. supported: the corrected p of the paired permutation test is at most 0.05, and the difference
   has the claimed sign;
3. not supported: the same with the other sign;
4. undecided: everything else, and the reason says what is lacking.

Support and refutation take the same evidence. Further comparisons in a family can raise its
p-values, so that they may leave a claim undecided; no verdict turns into its contrary, as the
first rule asks for no p. With fewer than six seeds there is no such interval, and the
permutation test can't reach 0.05, however large the difference: all is undecided, and what the
paired t-test with Holm's correction says is told beside it.

Numbers that the seed hardly draws are compared directly: counts of FLOPs, parameters and bytes.
No verdict rests on a measured time, which changes with whatever else the machine does.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.comparisons import Number, over_all, what_few_seeds_tell
from mtl_jax.studies.stats.intervals import LEVEL, MARGIN, PairedDifference
from mtl_jax.studies.stats.results import Result, by_setting, numbers, written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
class Contrast:
    """A difference between two arms that a claim says the sign of."""

    what: str
    difference: PairedDifference
    claimed: int
    """1 where the claim says that the difference is above 0, -1 where below"""


def contrast(
    results: Sequence[Result], pair: Sequence[str], number: Number, what: str, claimed: int = 1
) -> tuple[Contrast | Finding, list[Contrast]]:
    """Arm minus reference: over all settings and, where there are several, in each.

    Args:
        results: Lines of ``results.jsonl``.
        pair: The arm and its reference.
        number: Of a line; None where the line lacks it.
        what: The number in words.
        claimed: See ``Contrast``.

    Returns:
        The contrast over all settings, undecided where no seed has them all; and those in
        each setting.
    """
    arm, reference = pair
    found = over_all(results, arm, reference, number)
    over = _settings(found.settings)
    text = f"{what}, `{arm}` minus `{reference}`{f', over {over}' if over else ''}"
    details = [
        Contrast(setting or "no setting", difference, claimed)
        for setting, difference in found.within.items()
        if len(found.within) > 1
    ]
    if found.difference is None:
        return Finding(text, Verdict.UNDECIDED, "", "no seed has all that is compared"), details
    return Contrast(text, found.difference, claimed), details


def judge(
    contrasts: Sequence[Contrast],
    p_values: Sequence[float | None],
    t_values: Sequence[float | None],
    asked: int,
) -> list[Finding]:
    """The verdict on each contrast.

    Args:
        contrasts: What the claims say the sign of.
        p_values: Of each, corrected for the family that it was tested with.
        t_values: The same of the paired t-test, which is told where p_values can't be small.
        asked: Seeds that the study asks for; fewer are said to be so.
    """
    return [
        _decide(each, p_value, t_value, asked)
        for each, p_value, t_value in zip(contrasts, p_values, t_values, strict=True)
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
        key: Of a line: a count. Runs are compared setting by setting.

    Returns:
        The verdict, the arm's mean, and the lowest mean of the others; undecided where an arm
        lacks the count, or where some runs have less and others not.
    """
    groups = by_setting(results).values()

    def runs(name: str) -> list[list[float]]:
        return [list(numbers(lines, name, key).values()) for lines in groups]

    verdicts = {
        _less(mine, theirs) if mine and theirs else Verdict.UNDECIDED
        for other in others
        for mine, theirs in zip(runs(arm), runs(other), strict=True)
        if mine or theirs
    }
    means = [mean for other in others if (mean := _mean(runs(other))) is not None]
    return all_of(verdicts), _mean(runs(arm)), min(means, default=None)


def all_of(verdicts: set[Verdict]) -> Verdict:
    """The verdict on a claim of several parts, which holds if all of them do."""
    for verdict in (Verdict.NOT_SUPPORTED, Verdict.UNDECIDED, Verdict.SUPPORTED):
        if verdict in verdicts:
            return verdict
    return Verdict.UNDECIDED


def _less(mine: Sequence[float], theirs: Sequence[float]) -> Verdict:
    if max(mine) < min(theirs):
        return Verdict.SUPPORTED
    return Verdict.UNDECIDED if min(mine) < max(theirs) else Verdict.NOT_SUPPORTED


def _decide(contrast: Contrast, p_value: float, t_value: float | None, asked: int) -> Finding:
    interval, claimed = contrast.difference.interval, contrast.claimed
    of = "" if interval.n >= asked else f" of {asked}"
    number = (
        f"{formatting.signed(interval.mean)} {formatting.limits(interval)}".rstrip()
        + f", corrected p {formatting.p_text(p_value)}, "
        + (f"{interval.n}{of} seeds" if of else formatting.count_of(interval.n, "seed"))
    )

    def finding(verdict: Verdict, reason: str) -> Finding:
        return Finding(contrast.what, verdict, number, reason)

    if interval.within(MARGIN):
        reason = f"too small to matter, the whole interval is within {MARGIN:g} of 0"
        return finding(Verdict.NOT_SUPPORTED, reason)
    if p_value <= LEVEL:
        if interval.mean * claimed > 0:
            return finding(Verdict.SUPPORTED, "")
        return finding(Verdict.NOT_SUPPORTED, "the difference has the other sign")
    if few := what_few_seeds_tell(interval.n, t_value):
        return finding(Verdict.UNDECIDED, few)
    if (alone := contrast.difference.p_value) <= LEVEL:
        reason = f"p is {formatting.p_text(alone)} alone, but not after correction"
        return finding(Verdict.UNDECIDED, reason)
    return finding(Verdict.UNDECIDED, "the seeds scatter too widely")


def _settings(settings: Sequence[Mapping[str, Any]]) -> str:
    """Settings in words, with each value once: ``max_train_examples 64, 256``."""
    values: dict[str, dict[str, None]] = {}
    for name, value in (pair for setting in settings for pair in setting.items()):
        values.setdefault(name, {})[written(value)] = None
    return "; ".join(f"{name} {', '.join(found)}" for name, found in values.items())


def _mean(runs: Sequence[Sequence[float]]) -> float | None:
    values = [value for group in runs for value in group]
    return sum(values) / len(values) if values else None
