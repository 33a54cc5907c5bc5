"""The section of a report that says what a study makes of each claim of the design."""

from __future__ import annotations

from mtl_jax.studies.report.document import Block, Bullets, Cell, Paragraph, Row, Table
from mtl_jax.studies.stats import formatting, wording
from mtl_jax.studies.stats.claims import Judgement
from mtl_jax.studies.stats.decision_rules import Finding, Verdict
from mtl_jax.studies.stats.intervals import FEWEST_FOR_T, LEVEL, MARGIN


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
    stated: list[Block] = []
    if judgement.stated:
        lines = tuple(f"{sentence} {number}." for sentence, number in judgement.stated)
        stated = [Paragraph("These hold by construction, and are not tested:"), Bullets(lines)]
    if not rows:
        return stated
    left = [c.sentence for c in judgement.claims if c.finding.verdict is Verdict.NOT_ASKED]
    columns = ("claim", "verdict", "number", "of")
    table = Table("", columns, tuple(rows), _rule(judgement), textual=True)
    blocks: list[Block] = [table, *stated]
    return [*blocks, Paragraph(f"Not asked by this study: {' '.join(left)}")] if left else blocks


def _row(name: str, finding: Finding, in_setting: bool = False) -> Row:
    verdict = f"{finding.verdict}: {finding.reason}" if finding.reason else str(finding.verdict)
    number = finding.number or formatting.MISSING
    what = "" if in_setting else finding.what
    return Row(
        (Cell(name), Cell(verdict), Cell(number), Cell(what)), "reference" if in_setting else ""
    )


def _rule(judgement: Judgement) -> str:
    direct = "No verdict rests on a measured time."
    families = [each for each in (judgement.family, judgement.details) if each]
    if not families:
        return direct
    beside = len(judgement.overall) + len(judgement.within)
    found = f" The {beside} findings above are among these." if beside else ""
    tests = " Within settings, ".join(wording.test_note(each) for each in families)
    return (
        f"A claim is not supported if the 95 % interval (in brackets, of {FEWEST_FOR_T} seeds or "
        f"more, not corrected) is within {MARGIN:g} of 0, which is too small to matter. Otherwise "
        f"it is supported if the corrected two-sided p is at most {LEVEL:g} in the claimed "
        f"direction, not supported if it is so in the other direction, and undecided in all other "
        f"cases. {tests}{found} {direct}"
    )
