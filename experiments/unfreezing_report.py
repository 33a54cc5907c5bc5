"""The report of the unfreezing study: from how many sentences it pays, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import blocks
from experiments.arms import (
    Result,
    arms_of,
    evaluation_split,
    per_seed,
)
from experiments.claims import judge_claims
from experiments.compare import (
    Comparison,
    questions,
)
from experiments.document import Block, Bullets, Document, Heading, Paragraph
from experiments.outline import Failure, picture
from experiments.phase_counts import best_phases
from experiments.protocols import is_recipe
from experiments.study_plots import curves, heat_map
from experiments.unfreezing_findings import (
    AT_ONCE,
    CONTROL,
    FROZEN,
    GRADUAL,
    SETTING,
    depth_gains,
    gradual_text,
    is_depth,
    on,
    opponent,
    pays_text,
    size_names,
)


def leave_report(
    folder: Path,
    results: Sequence[Result],
    failures: Sequence[Failure],
    context: Mapping[str, Any],
) -> Path:
    """Writes and prints the report; see ``study.Report``."""
    return blocks.leave(folder, document(results, failures, context))


def document(
    results: Sequence[Result], failures: Sequence[Failure], context: Mapping[str, Any]
) -> Document:
    """The report as data.

    Args:
        results: Lines of ``results.jsonl``.
        failures: Arms without a result.
        context: See ``report.write_report``.
    """
    split = evaluation_split(results)
    number = on(split)
    asked = questions(results, SETTING, GRADUAL, opponent(results), number)
    judgement = judge_claims(results, failures, *asked)
    findings: list[Block] = [
        Paragraph(pays_text(results, split, failures), "lead"),
        *_of(depth_gains(results, split, failures), FROZEN),
        Paragraph(gradual_text(results, judgement.overall, judgement.within, split), "lead"),
        *_of(judgement.within, opponent(results)),
    ]
    sizes = size_names([*results, *failures])
    details: list[Block] = [Heading("Quality")]
    words = (f"macro-F1 on the {split} split", "training sentences")
    drawn = heat_map(results, SETTING, sizes, number, FROZEN, words)
    details += [picture(drawn)] if drawn else []
    panels = [(title, arms, number) for title, arms in _panels(results) if arms]
    drawn = curves("curves", results, SETTING, sizes, panels, words)
    details += [picture(drawn)] if drawn else []
    details += _tables(results, sizes, split)
    title = "From how many sentences unfreezing pays"
    return blocks.report(title, findings, details, results, failures, context, judgement)


def _of(gains: Sequence[Comparison], reference: str) -> list[Block]:
    texts = [blocks.comparison_text(gain, reference, f"{gain.value:,} sentences") for gain in gains]
    return [Bullets(tuple(texts))] if texts else []


def _panels(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    arms = arms_of(results)
    fixed = [arm for arm in arms if arm == FROZEN or is_depth(arm)]
    others = [arm for arm in arms if arm not in fixed]
    ends = [arm for arm in (FROZEN, AT_ONCE) if arm in arms]
    return [("fixed depths", fixed), ("recipes and single layers", [*ends, *others])]


def _tables(results: Sequence[Result], sizes: Mapping[int, str], split: str) -> list[Block]:
    number = on(split)
    ends = (AT_ONCE, CONTROL)
    of_recipes = [r for r in results if is_recipe(r["arm"]) or r["arm"] in ends]
    found: list[Block] = [
        blocks.grid(
            f"Macro-F1 on the {split} split, mean of both tasks, by training sentences",
            results,
            SETTING,
            sizes,
            lambda here, arm: blocks.mean_cell(per_seed(here, arm, number)),
            blocks.OVER_SEEDS,
        ),
        Heading("Differences"),
        blocks.gain_grid(f"Minus {FROZEN}", results, SETTING, sizes, number, FROZEN),
    ]
    if any(is_recipe(result["arm"]) for result in of_recipes):
        title = f"Recipes minus {AT_ONCE}, with as many passes over the data at most"
        found.append(blocks.gain_grid(title, of_recipes, SETTING, sizes, number, AT_ONCE))
    return [
        *found,
        *best_phases(results),
        *blocks.cost_blocks(
            results,
            SETTING,
            sizes,
            "Arms of a column have as many passes over their sentences, but for `auto` where it "
            "ends early.",
        ),
    ]
