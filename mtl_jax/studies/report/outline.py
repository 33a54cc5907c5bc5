"""What the report says, in which order: results in, a document out."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.studies.report import figures, tables
from mtl_jax.studies.report.claims_section import claims_blocks
from mtl_jax.studies.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Document,
    Facts,
    Heading,
    Paragraph,
    Picture,
    Row,
    Table,
)
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.claims import judge_claims
from mtl_jax.studies.stats.intervals import mean_interval
from mtl_jax.studies.stats.recommendation import Recommendation, alternatives, explain, recommend
from mtl_jax.studies.stats.results import (
    REFERENCE,
    Result,
    arms_of,
    evaluation_split,
    lookup,
    numbers,
    qualities,
    tasks_of,
    trained_arms,
    unfinished,
)

Failure = Mapping[str, Any]

UNCOUNTED = (
    "Of some of these runs the training FLOPs were not counted, as in results of earlier versions: "
    "what they cost is not compared."
)


def build(
    results: Sequence[Result], failures: Sequence[Failure], context: Mapping[str, Any]
) -> Document:
    """The report as data.

    Args:
        results: Lines of ``results.jsonl``.
        failures: Arms without a result.
        context: See ``write_report``.
    """
    subtitle = [formatting.count_of(len(arms_of(results)), "scenario")]
    subtitle.append(formatting.count_of(len({result["seed"] for result in results}), "seed"))
    if context.get("started"):
        subtitle.append(str(context["started"]))
    blocks = [*warnings(results, failures), *_findings(results)]
    blocks += claims_blocks(judge_claims(results, failures))
    blocks += _details(results) if results else []
    blocks += origin(results, failures, context)
    return Document("What to freeze", " · ".join(subtitle), tuple(blocks))


def _findings(results: Sequence[Result]) -> list[Block]:
    advice = recommend(results)
    if advice is None:
        why = (
            "Every scenario with validation scores is a control, with a head that never trained"
            if any(qualities(results, arm, "validation") for arm in trained_arms(results))
            else "No trained scenario has validation scores"
        )
        return [Paragraph(f"{why}: none is recommended.", "lead")]
    blocks: list[Block] = [
        Paragraph(" ".join(explain(advice)), "lead"),
        Facts(tuple(_facts(advice, results))),
    ]
    others = alternatives(advice, results)
    return [*blocks, Bullets(tuple(others))] if others else blocks


def _facts(advice: Recommendation, results: Sequence[Result]) -> list[tuple[str, Cell]]:
    chosen = advice.chosen.arm
    facts = [("Recommended", Cell(f"`{chosen}`"))]
    if advice.score:
        score = Cell(formatting.fixed(advice.score.mean), formatting.plus_minus(advice.score))
        facts.append((f"Macro-F1, {advice.split}", score))
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


def warnings(results: Sequence[Result], failures: Sequence[Failure]) -> list[Block]:
    """What a reader has to know before any number: changed bytes, failed runs, no test split."""
    changed = [r for r in results if r.get("frozen_digest_unchanged") is False]
    blocks: list[Block] = []
    if changed:
        runs = ", ".join(f"`{r['arm']}` seed {r['seed']}" for r in changed)
        blocks.append(Paragraph(f"Frozen parameters changed in {runs}: distrust them.", "warning"))
    if failures:
        failed = f"{formatting.count_of(len(failures), 'run')} failed; see the end of the report."
        blocks.append(Paragraph(failed, "warning"))
    lacking = unfinished(results, failures)
    if lacking:
        arms = "; ".join(f"`{arm}` {finished}" for arm, finished in lacking.items())
        text = "Results are missing, and means over unlike seeds are no fair match"
        blocks.append(Paragraph(f"{text}: {arms}.", "warning"))
    if evaluation_split(results) == "validation":
        text = (
            "The data has no test split. Everything here is measured on the validation split, on "
            "which the best epochs were chosen too, so it is optimistic."
        )
        blocks.append(Paragraph(text, "warning"))
    return blocks


def _details(results: Sequence[Result]) -> list[Block]:
    advice = recommend(results)
    chosen = advice.chosen.arm if advice else None
    blocks: list[Block] = [Heading("Quality")]
    blocks += figure(figures.quality_against_cost, results)
    blocks.append(tables.quality_table(results, chosen))
    blocks.append(Heading("Differences to full fine-tuning"))
    blocks.append(tables.difference_table(results, chosen) or Paragraph(_unpaired(results)))
    blocks += [Heading("Cost"), tables.cost_table(results, chosen)]
    if any(lookup(result, "train_flops") is None for result in results):
        blocks.append(Paragraph(UNCOUNTED))
    blocks.append(Paragraph(_digests(results)))
    blocks.append(Heading("Learning and overfitting"))
    blocks += figure(figures.learning_curves, results)
    blocks += figure(figures.gap_bars, results)
    blocks.append(tables.gap_table(results, chosen))
    for task in tasks_of(results):
        if sources := tables.source_table(results, chosen, task):
            drawn = figure(functools.partial(figures.by_source, task=task), results)
            blocks += [Heading(f"{task.capitalize()} by source"), *drawn, sources]
    return blocks


def _unpaired(results: Sequence[Result]) -> str:
    if REFERENCE in arms_of(results):
        return f"No other scenario shares a seed with `{REFERENCE}`: there is nothing to pair."
    return f"`{REFERENCE}` has no result in this study: there is nothing to compare with."


def _digests(results: Sequence[Result]) -> str:
    kept = sum(result.get("frozen_digest_unchanged") is True for result in results)
    runs = formatting.count_of(len(results), "run")
    if kept == len(results):
        return (
            f"Every frozen parameter kept its bytes: in all {runs} the digest of the frozen "
            "leaves is the same before and after."
        )
    return f"The digest of the frozen leaves is the same before and after in {kept} of {runs}."


def origin(
    results: Sequence[Result], failures: Sequence[Failure], context: Mapping[str, Any]
) -> list[Block]:
    """How the numbers came to be: failed runs, command, machine, data, settings, versions.

    Args:
        results: Lines of ``results.jsonl``.
        failures: Arms without a result.
        context: See ``report.write_report``.
    """
    blocks: list[Block] = []
    if failures:
        blocks += [Heading("Failed runs"), Bullets(tuple(failure_text(item) for item in failures))]
    blocks.append(Heading("How this was made"))
    if context.get("command"):
        blocks.append(Code(str(context["command"])))
    facts = [(name, context.get(name)) for name in ("started", "machine", "memory", "seeds")]
    if context.get("seconds") is not None:
        facts.append(("took", formatting.duration(float(context["seconds"]))))
    for key in ("train_examples", "test_examples", "epochs", "total_parameters"):
        values = sorted({int(result[key]) for result in results if result.get(key)})
        facts.append((key.replace("_", " "), ", ".join(f"{value:,}" for value in values)))
    blocks += _pairs("", {name: value for name, value in facts if value})
    if context.get("data"):
        blocks.append(Bullets(tuple(str(note) for note in context["data"])))
    blocks += _pairs("Settings", context.get("settings") or {})
    blocks += _pairs("Versions", context.get("versions") or {})
    return blocks


def _pairs(title: str, values: Mapping[str, Any]) -> list[Block]:
    if not values:
        return []
    rows = []
    for name, value in values.items():
        parts = value if isinstance(value, list | tuple) else [value]
        text = ", ".join(x if isinstance(x, str) else json.dumps(x, default=str) for x in parts)
        rows.append(Row((Cell(str(name)), Cell(text))))
    return [Table(title, ("what", "value"), tuple(rows), textual=True)]


def failure_text(failure: Failure) -> str:
    """One line on a run that has no result."""
    return f"`{failure.get('arm')}` seed {failure.get('seed')}: {failure.get('error')}"


def figure(plot: figures.Plot, results: Sequence[Result]) -> list[Block]:
    """A picture of the results; nothing where its numbers are missing."""
    drawn = plot(results)
    return [] if drawn is None else [picture(drawn)]


def picture(drawn: figures.Drawn) -> Picture:
    """A figure as a block of a document."""
    buffer = io.BytesIO()
    figures.save(drawn.figure, buffer)
    return Picture(f"{drawn.name}.png", buffer.getvalue(), drawn.caption)
