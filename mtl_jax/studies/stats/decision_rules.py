"""When a claim is supported, not supported or undecided: the rule, apart from any claim.

The rule for a difference that the seed draws, of a score or of a gap between scores. What
comes first decides:

1. not supported, as too small to matter: the whole 95 % interval of the difference, over seeds
   and test texts, lies within 0.01 of 0. This criterion of equivalence holds the interval of each
   comparison by itself; it is that of two one-sided tests at 2.5 % each (Schuirmann, "A Comparison
   of the Two One-Sided Tests Procedure and the Power Approach", Journal of Pharmacokinetics and
   Biopharmaceutics 15, 1987), and says how large an effect can be, not whether there is one;
2. supported: the corrected p of ``intervals.family_tests`` is at most 0.05, and the difference
   has the claimed sign;
3. not supported: the same with the other sign;
4. undecided: everything else, and the reason says what is lacking.

Support and refutation take the same evidence. Further comparisons in a family can raise its
p-values, so that they may leave a claim undecided; no verdict turns into its contrary, as the
first rule asks for no p. Of fewer than three seeds there is neither an interval nor a test.

Counts of FLOPs and parameters, which hold by construction, are stated and not tested. No verdict
rests on a measured time, which changes with whatever else the machine does.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.comparisons import Number, over_all
from mtl_jax.studies.stats.intervals import LEVEL, MARGIN, PairedDifference, of_differences
from mtl_jax.studies.stats.results import Result, by_setting, per_seed, written
from mtl_jax.studies.stats.wording import too_few_seeds

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
) -> tuple[Contrast | Finding | None, list[Contrast]]:
    """Arm minus reference: over all settings and, where there are several, in each.

    Args:
        results: Lines of ``results.jsonl``.
        pair: The arm and its reference.
        number: Of a line; None where the line lacks it.
        what: The number in words.
        claimed: See ``Contrast``.

    Returns:
        The contrast over all settings, undecided where no seed has them all, None where no line
        has the number; and those in each setting.
    """
    arm, reference = pair
    if all(number(line) is None for line in results if line["arm"] in pair):
        return None, []
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
    contrasts: Sequence[Contrast], p_values: Sequence[float | None], asked: int
) -> list[Finding]:
    """The verdict on each contrast.

    Args:
        contrasts: What the claims say the sign of.
        p_values: Of each, corrected for the family that it was tested with.
        asked: Seeds that the study asks for; fewer are said to be so.
    """
    pairs = zip(contrasts, p_values, strict=True)
    return [_decide(each, p_value, asked) for each, p_value in pairs]


def within_arm(
    results: Sequence[Result], arm: str, number: Number, what: str
) -> tuple[Contrast | Finding | None, list[Contrast]]:
    """A number of each run of one arm against 0, where a run holds both sides of a comparison.

    Args:
        results: Lines of ``results.jsonl``.
        arm: The arm.
        number: Of a line; None where the line lacks it. Of several settings a seed has the mean.
        what: The number in words.

    Returns:
        The contrast, None where no run has the number; and no details.
    """
    by_seed: dict[int, list[float]] = {}
    for lines in by_setting(results).values():
        for seed, value in per_seed(lines, arm, number).items():
            by_seed.setdefault(seed, []).append(value)
    most = max(map(len, by_seed.values()), default=0)
    means = {seed: sum(v) / len(v) for seed, v in by_seed.items() if len(v) == most}
    return of_seeds(means, what, claimed=1) if means else (None, [])


def of_seeds(
    differences: Mapping[int, float], what: str, claimed: int
) -> tuple[Contrast | Finding, list[Contrast]]:
    """A contrast of differences that are known already; undecided where there are none."""
    found = of_differences(dict(sorted(differences.items())))
    if found is None:
        return Finding(what, Verdict.UNDECIDED, "", "no seed has all that is compared"), []
    return Contrast(what, found, claimed), []


def _decide(contrast: Contrast, p_value: float | None, asked: int) -> Finding:
    interval, claimed = contrast.difference.interval, contrast.claimed
    of = "" if interval.n >= asked else f" of {asked}"
    number = (
        f"{formatting.signed(interval.mean)} {formatting.limits(interval)}".rstrip()
        + ("" if p_value is None else f", corrected p {formatting.p_text(p_value)}")
        + ", "
        + (f"{interval.n}{of} seeds" if of else formatting.count_of(interval.n, "seed"))
    )

    def finding(verdict: Verdict, reason: str) -> Finding:
        return Finding(contrast.what, verdict, number, reason)

    if interval.within(MARGIN):
        reason = f"too small to matter, the whole interval is within {MARGIN:g} of 0"
        return finding(Verdict.NOT_SUPPORTED, reason)
    if p_value is None:
        return finding(Verdict.UNDECIDED, too_few_seeds(interval.n))
    if p_value <= LEVEL:
        if interval.mean * claimed > 0:
            return finding(Verdict.SUPPORTED, "")
        return finding(Verdict.NOT_SUPPORTED, "the difference has the other sign")
    alone = contrast.difference.p_value
    if alone is not None and alone <= LEVEL:
        reason = f"p is {formatting.p_text(alone)} alone, but not after correction"
        return finding(Verdict.UNDECIDED, reason)
    scatter = "seeds and texts scatter" if interval.over_texts else "the seeds scatter"
    return finding(Verdict.UNDECIDED, f"{scatter} too widely")


def _settings(settings: Sequence[Mapping[str, Any]]) -> str:
    """Settings in words, with each value once: ``max_train_examples 64, 256``."""
    values: dict[str, dict[str, None]] = {}
    for name, value in (pair for setting in settings for pair in setting.items()):
        values.setdefault(name, {})[written(value)] = None
    return "; ".join(f"{name} {', '.join(found)}" for name, found in values.items())
