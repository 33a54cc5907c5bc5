"""What the results of a study say of the design's claims.

A study that does not have the arms that a claim is about does not ask it.
``mtl_jax.studies.stats.decision_rules`` has the rule that decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.claim_specs import CLAIMS, STATEMENTS, Answer, Claim
from mtl_jax.studies.stats.comparisons import Comparison
from mtl_jax.studies.stats.decision_rules import Contrast, Finding, Verdict, judge
from mtl_jax.studies.stats.intervals import PairedDifference, family_tests
from mtl_jax.studies.stats.results import Result

_Key = tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Judged:
    """A claim with its verdict, and, of a study with several settings, that of each."""

    sentence: str
    finding: Finding
    details: tuple[Finding, ...] = ()


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Every claim, judged, and what was tested together with them."""

    stated: tuple[tuple[str, str], ...]
    """what holds by construction, each with its numbers"""
    claims: tuple[Judged, ...]
    family: tuple[PairedDifference, ...]
    """what was compared over several settings, or in a study without any"""
    details: tuple[PairedDifference, ...]
    """what was compared within one setting, which is a family of its own"""
    seeds: int
    """that the study asks for"""
    overall: tuple[Comparison, ...]
    """the report's own of the first family, corrected"""
    within: tuple[Comparison, ...]
    """the report's own of the second, corrected"""


def judge_claims(
    results: Sequence[Result],
    failures: Sequence[Mapping[str, Any]] = (),
    overall: Sequence[Comparison] = (),
    within: Sequence[Comparison] = (),
) -> Judgement:
    """What a study says of each claim of the design.

    What a report compares beside the claims is tested with them, and what is compared more than
    once is tested once: in the family within a setting where one setting has all of it, else
    in that over all settings. So it has one p-value, wherever it is shown.

    Args:
        results: Lines of ``results.jsonl``, with a ``setting`` where there are several.
        failures: Runs without a result, with ``arm`` and ``seed``.
        overall: What the report compares over all settings, not corrected yet.
        within: What it compares within a setting, not corrected yet.
    """
    seeds = len({line["seed"] for line in [*results, *failures]})
    answers = [_answer(claim, results, failures) for claim in CLAIMS]
    heads = [head for head, _ in answers if isinstance(head, Contrast)]
    details = [each for _, found in answers for each in found]
    inner = {_key(each): each for each in (*details, *within)}
    outer = {_key(each): each for each in (*heads, *overall) if _key(each) not in inner}
    tests = {**_tested(outer), **_tested(inner)}

    def judged(contrasts: Sequence[Contrast]) -> Iterator[Finding]:
        found = [tests[_key(each)] for each in contrasts]
        return iter(judge(contrasts, found, seeds))

    decided, shown = judged(heads), judged(details)
    claims = []
    for claim, (head, found) in zip(CLAIMS, answers, strict=True):
        finding = next(decided) if isinstance(head, Contrast) else head
        finding = finding or Finding("", Verdict.NOT_ASKED)
        claims.append(Judged(claim.sentence, finding, tuple(next(shown) for _ in found)))
    overall, within = (
        tuple(dataclasses.replace(each, p_value=tests[_key(each)]) for each in found)
        for found in (overall, within)
    )
    family, apart = (tuple(e.difference for e in each.values()) for each in (outer, inner))
    present = {line["arm"] for line in results}
    stated = tuple(
        (each.sentence, each.numbers(results, pair))
        for each in STATEMENTS
        if (pair := each.arms(present)) is not None
    )
    return Judgement(stated, tuple(claims), family, apart, seeds, overall, within)


def _key(compared: Contrast | Comparison) -> _Key:
    """What is the same wherever the same two are compared, whichever comes first.

    The tests are two-sided: a difference and its negative have one p-value.
    """
    found = tuple(sorted(compared.difference.by_seed.items()))
    return max(found, tuple((seed, -value) for seed, value in found))


def _tested(family: Mapping[_Key, Contrast | Comparison]) -> dict[_Key, float | None]:
    """The corrected p-value of each."""
    p_values = family_tests([each.difference for each in family.values()])
    return dict(zip(family, p_values, strict=True))


def _answer(
    claim: Claim, results: Sequence[Result], failures: Sequence[Mapping[str, Any]]
) -> Answer:
    present = {result["arm"] for result in results}
    pair = claim.arms({*present, *(failure["arm"] for failure in failures)})
    if pair is None:
        return None, ()
    missing = [arm for arm in pair if arm not in present]
    if missing:
        reason = f"no run of {formatting.listing(missing)} gave a result"
        return Finding("", Verdict.UNDECIDED, "", reason), ()
    head, details = claim.ask(results, pair)
    remark = claim.remark(results, pair)
    if isinstance(head, Contrast) and remark:
        head = dataclasses.replace(head, what=f"{head.what}; {remark}")
    return head, details
