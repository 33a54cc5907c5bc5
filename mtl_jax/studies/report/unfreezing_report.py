"""The report of the unfreezing study: from how many sentences it pays, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.studies.arm_specs import is_recipe
from mtl_jax.studies.report import study_sections
from mtl_jax.studies.report.cells import mean_cell
from mtl_jax.studies.report.document import Block, Bullets, Document, Paragraph
from mtl_jax.studies.report.figures import picture
from mtl_jax.studies.report.outline import Failure, Parts, assemble
from mtl_jax.studies.report.phase_counts import best_phases
from mtl_jax.studies.report.study_figures import curves, heat_map
from mtl_jax.studies.report.unfreezing_findings import (
    AT_ONCE,
    CONTROL,
    COST,
    FROZEN,
    GRADUAL,
    SETTING,
    depth_gains,
    gradual_text,
    is_at_cost,
    is_depth,
    on,
    opponent,
    pays_text,
    size_names,
)
from mtl_jax.studies.stats import formatting, wording
from mtl_jax.studies.stats.claims import judge_claims
from mtl_jax.studies.stats.comparisons import (
    Comparison,
    Number,
    questions,
)
from mtl_jax.studies.stats.results import (
    Result,
    arms_of,
    evaluation_split,
    per_seed,
    score_name,
)


def document(
    results: Sequence[Result], failures: Sequence[Failure], context: Mapping[str, Any]
) -> Document:
    """See ``outline.Build``."""
    split = evaluation_split(results)
    number = on(split)
    asked = questions(results, SETTING, GRADUAL, opponent(results), number)
    judgement = judge_claims(results, failures, *asked)
    sizes = size_names([*results, *failures])
    words = (f"{score_name(results)} on the {split} split", "training sentences")
    drawn = heat_map(results, SETTING, sizes, number, FROZEN, words)
    panels = [(title, arms, number) for title, arms in _panels(results) if arms]
    lines = curves("curves", results, SETTING, sizes, panels, words)
    at_cost = any(line["arm"] == COST.frozen for line in [*results, *failures])
    passes = (
        "Arms of a column have as many passes over their sentences, but for `auto` where it ends "
        "early, and for those at equal cost: they have as many as `none_frozen` pays for, ten "
        "times as many at most."
    )
    parts = Parts(
        title="From how many sentences unfreezing pays",
        answer=[
            Paragraph(pays_text(results, split, failures), "lead"),
            *([Paragraph(pays_text(results, split, failures, COST), "lead")] if at_cost else []),
            *([picture(lines)] if lines else []),
            Paragraph(gradual_text(results, judgement.overall, judgement.within, split), "lead"),
        ],
        table=[
            *([picture(drawn)] if drawn else []),
            study_sections.grid(
                f"{formatting.capital(score_name(results))} on the {split} split, mean over tasks, "
                "by training sentences",
                results,
                SETTING,
                sizes,
                lambda here, arm: mean_cell(per_seed(here, arm, number)),
                wording.mean_note(results, split),
            ),
        ],
        learning=best_phases(results),
        cost=study_sections.cost_blocks(results, SETTING, sizes, passes),
        statistics=[
            *_of(depth_gains(results, split, failures), FROZEN),
            *_of(depth_gains(results, split, failures, COST), COST.frozen),
            *_of(judgement.within, opponent(results)),
            *_gains(results, sizes, number),
        ],
        judgement=judgement,
    )
    return assemble(parts, results, failures, context)


leave_report = study_sections.leaving(document)


def _of(gains: Sequence[Comparison], reference: str) -> list[Block]:
    texts = [
        study_sections.comparison_text(gain, reference, f"{gain.value:,} sentences")
        for gain in gains
    ]
    return [Bullets(tuple(texts))] if texts else []


def _panels(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    arms = arms_of(results)
    fixed = [arm for arm in arms if arm == FROZEN or is_depth(arm)]
    at_cost = [arm for arm in arms if is_at_cost(arm)]
    others = [arm for arm in arms if arm not in (*fixed, *at_cost)]
    ends = [arm for arm in (FROZEN, AT_ONCE) if arm in arms]
    full = [arm for arm in ends if arm == AT_ONCE and at_cost]
    return [
        ("fixed depths", fixed),
        ("fixed depths at equal cost", [*at_cost, *full]),
        ("recipes and single layers", [*ends, *others]),
    ]


def _gains(results: Sequence[Result], sizes: Mapping[int, str], number: Number) -> list[Block]:
    """What arms have over the frozen backbone, and recipes over unfreezing at once."""
    ends = (AT_ONCE, CONTROL)
    at_updates = [result for result in results if not is_at_cost(result["arm"])]
    of_recipes = [r for r in results if is_recipe(r["arm"]) or r["arm"] in ends]
    found: list[Block] = [
        study_sections.gain_grid(
            f"At equal updates: minus {FROZEN}", at_updates, SETTING, sizes, number, FROZEN
        )
    ]
    costly = [r for r in results if is_at_cost(r["arm"]) or r["arm"] == AT_ONCE]
    if any(is_at_cost(result["arm"]) for result in costly):
        title = f"At equal cost: minus {COST.frozen}"
        found.append(study_sections.gain_grid(title, costly, SETTING, sizes, number, COST.frozen))
    if any(is_recipe(result["arm"]) for result in of_recipes):
        title = f"Recipes minus {AT_ONCE}, with as many passes over the data at most"
        found.append(study_sections.gain_grid(title, of_recipes, SETTING, sizes, number, AT_ONCE))
    return found
