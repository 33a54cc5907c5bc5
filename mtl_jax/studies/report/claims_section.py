"""The section of a report that says what a study makes of each claim of the design."""

from __future__ import annotations

from mtl_jax.studies.report.document import Block, Cell, Paragraph, Row, Table
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.claims import Judgement
from mtl_jax.studies.stats.decision_rules import Finding, Verdict
from mtl_jax.studies.stats.intervals import FEWEST_FOR_T, LEVEL, MARGIN
from mtl_jax.studies.stats.resampling import seeds_needed, smallest_p


def claims_blocks(judgement: Judgement) -> list[Block]:
    """Table and rule; nothing where the study asks for none of the claims.

    Any study may put them in its report whose results have the arms' names and, if it has
    several settings, a ``setting`` in each line.

    Args:
        judgement: Of the claims, with what else the report tests.
    """
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
    blocks: list[Block] = [table]
    return [*blocks, Paragraph(f"Not asked by this study: {' '.join(left)}")] if left else blocks


def _row(name: str, finding: Finding, in_setting: bool = False) -> Row:
    verdict = f"{finding.verdict}: {finding.reason}" if finding.reason else str(finding.verdict)
    number = finding.number or formatting.MISSING
    what = "" if in_setting else finding.what
    return Row(
        (Cell(name), Cell(verdict), Cell(number), Cell(what)), "reference" if in_setting else ""
    )


def _rule(judgement: Judgement) -> str:
    direct = (
        "Counts of training FLOPs, parameters and bytes are compared directly; no verdict rests on "
        "a measured time."
    )
    if not judgement.family and not judgement.details:
        return direct
    beside = len(judgement.overall) + len(judgement.within)
    comparisons = formatting.count_of(judgement.family, "comparison")
    apart = (
        f", and, as a family of their own, the {judgement.details} within a setting"
        if judgement.details
        else ""
    )
    found = f"; the {beside} findings above are among these" if beside else ""
    seeds = judgement.seeds
    return (
        f"Not supported, as too small to matter: the 95 % bootstrap interval (in brackets; of "
        f"{seeds_needed(LEVEL)} seeds or more, not corrected) is within {MARGIN:g} of 0. Else "
        f"supported: the corrected p of the paired permutation test, two-sided, is at most "
        f"{LEVEL:g} in the claimed direction; not supported: the same in the other direction; "
        "undecided: everything else. Comparisons are tested together, by the largest statistic of "
        "the family over joint flips of the seeds' signs (Westfall & Young 1993, maxT): "
        f"{comparisons}{apart}{found}. With {formatting.count_of(seeds, 'seed')} the "
        "smallest p that "
        f"this test can give is {smallest_p(seeds):.3g}, whatever the size of the family; "
        f"{seeds_needed(LEVEL)} seeds can reach {LEVEL:g}. {_beside(seeds)}{direct}"
    )


def _beside(seeds: int) -> str:
    """What stands beside a test that can't reach the level."""
    if seeds >= seeds_needed(LEVEL):
        return ""
    return (
        f"Where fewer can't, the p of the paired t-test with Holm's correction in the same family "
        f"stands beside it, from {FEWEST_FOR_T} seeds on: it takes the differences for normally "
        "distributed, and decides no claim. "
    )
