"""Blocks that the reports of studies with several settings are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from mtl_jax.core.console import Terminal
from mtl_jax.studies.report.cells import arm_cell, difference_cell, flops_cell, seconds_cell
from mtl_jax.studies.report.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Paragraph,
    Row,
    Table,
)
from mtl_jax.studies.report.outline import Build
from mtl_jax.studies.report.write import show_table, write_document
from mtl_jax.studies.settings import Report
from mtl_jax.studies.stats import formatting, wording
from mtl_jax.studies.stats.comparisons import Comparison, Number, having
from mtl_jax.studies.stats.results import (
    REFERENCE,
    Result,
    arms_of,
    control_heads,
    numbers,
    per_seed,
)


def grid(
    title: str,
    results: Sequence[Result],
    name: str,
    values: Mapping[Any, str],
    cell: Callable[[Sequence[Result], str], Cell],
    note: str = "",
) -> Table:
    """A table of arms by the values of a setting.

    Args:
        title: Of the table.
        results: Lines of ``results.jsonl``.
        name: Of the setting.
        values: What to call each of its values.
        cell: What to say of an arm, from the results of one value.
        note: What to say below.
    """
    rows, controls = [], control_heads(results)
    for arm in arms_of(results):
        cells = [cell(having(results, **{name: value}), arm) for value in values]
        rows.append(Row((arm_cell(arm, controls), *cells)))
    return Table(title, ("arm", *values.values()), tuple(rows), note)


def gain_grid(
    title: str,
    results: Sequence[Result],
    name: str,
    values: Mapping[Any, str],
    number: Number,
    reference: str,
) -> Table:
    """What each arm has over a reference with the same seed, by the values of a setting."""

    def cell(here: Sequence[Result], arm: str) -> Cell:
        if arm == reference:
            return Cell(formatting.MISSING)
        return difference_cell(per_seed(here, arm, number), per_seed(here, reference, number))

    return grid(title, results, name, values, cell, wording.difference_note())


def cost_blocks(
    results: Sequence[Result],
    name: str,
    values: Mapping[Any, str],
    passes: str,
    reference: str = REFERENCE,
) -> list[Block]:
    """What the arms cost, by the values of a setting: counted FLOPs, then measured times.

    Args:
        results: Lines of ``results.jsonl``.
        name: Of the setting.
        values: What to call each of its values.
        passes: What to say of the passes that the arms make.
        reference: The arm that the FLOPs are compared with.
    """

    def flops(here: Sequence[Result], arm: str) -> Cell:
        base = list(numbers(here, reference, "train_flops").values())
        mean = sum(base) / len(base) if base and arm != reference else None
        return flops_cell(numbers(here, arm, "train_flops"), mean)

    def seconds(here: Sequence[Result], arm: str) -> Cell:
        return seconds_cell(numbers(here, arm, "train_seconds"))

    counted = f"Counted; means over seeds, in brackets the ratio to `{reference}`. {passes}"
    measured = (
        "Measured, medians with their range over seeds in brackets. Two times whose ranges overlap "
        "are equal, and no answer of this report rests on one."
    )
    return [
        grid("Training FLOPs of one run", results, name, values, flops, counted),
        grid("Training seconds of one run", results, name, values, seconds, measured),
    ]


def comparison_text(comparison: Comparison, reference: str, where: str) -> str:
    """One sentence on a comparison: how large, how sure."""
    interval = comparison.difference.interval
    limits = f" {formatting.limits(interval)}" if interval.low is not None else ""
    sure = wording.corrected_p(comparison.p_value, interval.n)
    return (
        f"{where}: `{comparison.arm}` {formatting.signed(comparison.mean)}{limits} against "
        f"`{reference}`, {comparison.verdict} ({sure})."
    )


def leave(folder: Path, document: Document, most_columns: int | None = None) -> Path:
    """Writes a document; prints its first table of numbers, less the asides, and what was found.

    Args:
        folder: Of the study.
        document: Its report.
        most_columns: Of the table, on the terminal.
    """
    path = write_document(folder, document)
    console = Terminal()
    tables = (block for block in document.blocks if isinstance(block, Table))
    table = next((table for table in tables if not table.textual), None)
    if table is not None:
        show_table(console, _narrow(table, most_columns))
    for block in document.blocks:
        if isinstance(block, Paragraph) and block.style:
            colour = "red" if block.style == "warning" else "default"
            console.print(Text(block.text.replace("`", ""), style=colour))
        elif isinstance(block, Bullets) and block.style:
            for item in block.items:
                console.print(Text(f"warning: {item}".replace("`", ""), style="yellow"))
    return path


def leaving(document: Build, most_columns: int | None = None) -> Report:
    """Returns what leaves a report, as ``settings.Report``.

    Args:
        document: The report as data.
        most_columns: As of ``leave``.
    """

    def leave_report(
        folder: Path,
        results: Sequence[Result],
        failures: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any],
    ) -> Path:
        # The predictions of a study that is judged again are not where its report is written.
        found = document(results, failures, {"folder": folder, **context})
        return leave(folder, found, most_columns)

    return leave_report


def _narrow(table: Table, most: int | None) -> Table:
    """What of a table fits a terminal."""
    rows = (
        Row(tuple(Cell(cell.text) for cell in row.cells[:most]), row.style) for row in table.rows
    )
    return dataclasses.replace(table, columns=table.columns[:most], rows=tuple(rows))
