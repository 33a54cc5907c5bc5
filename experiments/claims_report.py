"""The section of a report that says what a study makes of each claim of the design."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments import wording
from experiments.claims import Judgement, judge_claims
from experiments.document import Block, Cell, Heading, Paragraph, Row, Table
from experiments.resampling import seeds_needed, smallest_p
from experiments.statistics import LEVEL
from experiments.verdicts import MARGIN, Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from experiments.arms import Result


def claims_blocks(
    results: Sequence[Result], failures: Sequence[Mapping[str, Any]] = ()
) -> list[Block]:
    """Heading, table and rule; nothing where the study asks for none of the claims.

    Any study may put them in its report whose results have the arms' names and, if it has
    several settings, a ``setting`` in each line.

    Args:
        results: Lines of ``results.jsonl``.
        failures: Runs without a result, with ``arm`` and ``seed``.
    """
    judgement = judge_claims(results, failures)
    rows = []
    for claim in judgement.claims:
        if claim.finding.verdict is not Verdict.NOT_ASKED:
            rows.append(_row(claim.sentence, claim.finding))
            rows += [_row(f"at {each.what}", each, in_setting=True) for each in claim.details]
    if not rows:
        return []
    left = [c.sentence for c in judgement.claims if c.finding.verdict is Verdict.NOT_ASKED]
    columns = ("claim", "verdict", "number", "of")
    table = Table("", columns, tuple(rows), _rule(judgement), textual=True)
    blocks: list[Block] = [Heading("What the design claims"), table]
    return [*blocks, Paragraph(f"Not asked by this study: {' '.join(left)}")] if left else blocks


def _row(name: str, finding: Finding, in_setting: bool = False) -> Row:
    verdict = f"{finding.verdict}: {finding.reason}" if finding.reason else str(finding.verdict)
    number = finding.number or wording.MISSING
    what = "" if in_setting else finding.what
    return Row(
        (Cell(name), Cell(verdict), Cell(number), Cell(what)), "reference" if in_setting else ""
    )


def _rule(judgement: Judgement) -> str:
    direct = (
        "Counts of parameters and bytes are compared directly, as are training times, of which "
        "none of three runs or more may overlap."
    )
    if not judgement.family:
        return direct
    comparisons = wording.count_of(judgement.family, "comparison")
    apart = (
        f", and, as a family of their own, the {judgement.details} within a setting"
        if judgement.details
        else ""
    )
    seeds = judgement.seeds
    return (
        f"Supported: the paired permutation test, two-sided, gives a Holm-corrected p of at most "
        f"{LEVEL:g} in the claimed direction. Not supported: the same in the other direction, or, "
        f"from {seeds_needed(1, LEVEL)} seeds on, a 95 % bootstrap interval (in brackets) on the "
        f"wrong side of 0 or within {MARGIN:g} of it. Undecided: everything else. Holm's "
        f"correction covers {comparisons}{apart}. With {wording.count_of(seeds, 'seed')} the "
        f"smallest p that the test can give, before correction, is 2/2^{seeds} = "
        f"{smallest_p(seeds):.3g}; {seeds_needed(judgement.family, LEVEL)} seeds can reach "
        f"{LEVEL:g} after it. {direct}"
    )
