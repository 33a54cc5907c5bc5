"""The report of a study whose arms have no settings: which of them to use, and what it costs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.studies.report import figures, tables
from mtl_jax.studies.report.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Facts,
    Paragraph,
)
from mtl_jax.studies.report.figures import picture
from mtl_jax.studies.report.outline import Failure, Parts, assemble, baselines_of
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.intervals import mean_interval
from mtl_jax.studies.stats.recommendation import Recommendation, recommend
from mtl_jax.studies.stats.recommendation_text import alternatives, answer, explain
from mtl_jax.studies.stats.results import (
    REFERENCE,
    Result,
    arms_of,
    numbers,
    qualities,
    tasks_of,
    trained_arms,
)


def build(
    results: Sequence[Result], failures: Sequence[Failure], context: Mapping[str, Any]
) -> Document:
    """See ``outline.Build``."""
    advice = recommend(results)
    chosen = advice.chosen.arm if advice else None
    parts = Parts(
        title=context.get("question") or "What to freeze", answer=_answer(advice, results)
    )
    if results:
        parts = Parts(
            title=parts.title,
            answer=parts.answer,
            table=[tables.quality_table(results, chosen, baselines_of(context))],
            sources=_by_source(results, chosen),
            learning=[*_drawn(figures.gap_bars, results), tables.gap_table(results, chosen)],
            cost=[tables.cost_table(results, chosen)],
            statistics=_statistics(advice, results),
            has_baselines=True,
        )
    return assemble(parts, results, failures, context)


def _answer(advice: Recommendation | None, results: Sequence[Result]) -> list[Block]:
    if advice is None:
        why = (
            "Every arm with validation scores is a control, with a head that never trained"
            if any(qualities(results, arm, "validation") for arm in trained_arms(results))
            else "No trained arm has validation scores"
        )
        return [Paragraph(f"{why}: none is recommended.", "lead")]
    return [
        Paragraph(answer(advice, results), "lead"),
        *_drawn(figures.quality_against_cost, results),
        Facts(tuple(_facts(advice, results))),
    ]


def _facts(advice: Recommendation, results: Sequence[Result]) -> list[tuple[str, Cell]]:
    chosen = advice.chosen.arm
    facts = [("Recommended", Cell(f"`{chosen}`"))]
    if advice.score:
        score = Cell(formatting.fixed(advice.score.mean), formatting.plus_minus(advice.score))
        facts.append((f"{formatting.capital(advice.score_name)}, {advice.split}", score))
    for label, key, written in (
        ("Training FLOPs", "train_flops", formatting.flops),
        ("Trained parameters", "trainable_parameters", lambda count: formatting.fixed(count, 0)),
    ):
        mine, theirs = (
            mean_interval(numbers(results, arm, key).values()) for arm in (chosen, REFERENCE)
        )
        if mine:
            text = written(mine.mean)
            ratio = formatting.ratio(mine.mean, theirs.mean if theirs else None)
            compared = ratio and chosen != REFERENCE
            facts.append((label, Cell(text, f"{ratio} {REFERENCE}" if compared else "")))
    return facts


def _by_source(results: Sequence[Result], chosen: str | None) -> list[Block]:
    found: list[Block] = []
    for task in tasks_of(results):
        if sources := tables.source_table(results, chosen, task):
            found += [*_drawn(functools.partial(figures.by_source, task=task), results), sources]
    return found


def _statistics(advice: Recommendation | None, results: Sequence[Result]) -> list[Block]:
    found: list[Block] = []
    if advice is not None:
        found.append(Paragraph(" ".join(explain(advice))))
        others = alternatives(advice, results)
        found += [Bullets(tuple(others))] if others else []
    if REFERENCE in arms_of(results):
        reference, lines = REFERENCE, results
    elif advice is not None:
        # With the chosen arm those are compared that are ranked, as the recommendation does.
        reference, ranked = advice.chosen.arm, {each.arm for each in advice.candidates}
        lines = [result for result in results if result["arm"] in ranked]
    else:
        return found
    differences = tables.difference_table(lines, reference, advice.chosen.arm if advice else None)
    nothing = f"No other arm shares a seed with `{reference}`: there is nothing to compare."
    return [*found, differences or Paragraph(nothing)]


def _drawn(plot: figures.Plot, results: Sequence[Result]) -> list[Block]:
    """A picture of the results; nothing where its numbers are missing."""
    drawn = plot(results)
    return [] if drawn is None else [picture(drawn)]
