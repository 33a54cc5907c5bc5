"""Writes what a study found: ``report.md``, ``report.html`` and its pictures."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.measure import Measurement
from rich.segment import Segments
from rich.table import Table as RichTable
from rich.text import Text

from mtl_jax.core.atomic_write import atomic_write
from mtl_jax.core.console import Terminal, name_width, side_by_side
from mtl_jax.studies.report import tables
from mtl_jax.studies.report.document import Cell, Document, Picture, Row, Table
from mtl_jax.studies.report.outline import Failure, baselines_of, failure_text
from mtl_jax.studies.report.render import to_html, to_markdown
from mtl_jax.studies.report.scenarios_report import build
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.doubts import doubts
from mtl_jax.studies.stats.recommendation import recommend
from mtl_jax.studies.stats.recommendation_text import explain
from mtl_jax.studies.stats.results import Result, evaluation_split, score_name, tasks_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

# More columns than any table has.
_WIDEST = 10_000
_NARROWEST_NAME = 16


def write_report(
    workdir: Path,
    results: Sequence[Result],
    failures: Sequence[Failure] = (),
    context: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``report.md``, ``report.html`` and the pictures into ``workdir``.

    Each file appears whole or not at all, so a reader never meets half a report.

    Args:
        workdir: The folder of the study; made if it is missing.
        results: Lines of ``results.jsonl``.
        failures: Arms without a result, each with ``arm``, ``seed`` and ``error``.
        context: How the study was made: any of ``question``, the title, ``command``, ``started``,
            ``seconds``, ``machine``, ``versions``, ``data``, ``seeds``, ``settings`` and ``asked``,
            the runs of each arm; and ``corpora``, the data that are open already, by their
            ``DataConfig``.

    Returns:
        The path of ``report.html``.
    """
    # The predictions of a study that is judged again are not where its report is written.
    known = {"folder": workdir, **(context or {})}
    return write_document(workdir, build(results, failures, known))


def leave_report(
    folder: Path,
    results: Sequence[Result],
    failures: Sequence[Failure],
    context: Mapping[str, Any],
) -> Path:
    """Writes the report and prints its main table; see ``settings.Report``."""
    report = write_report(folder, results, failures, context)
    print_table(results, failures, baselines=baselines_of(context))
    return report


def write_document(workdir: Path, document: Document) -> Path:
    """Writes a document as ``report.md``, ``report.html`` and its pictures.

    Returns:
        The path of ``report.html``.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    for block in document.blocks:
        if isinstance(block, Picture):
            _write(workdir / block.name, block.png)
    _write(workdir / "report.md", to_markdown(document).encode(errors="backslashreplace"))
    path = workdir / "report.html"
    _write(path, to_html(document).encode(errors="backslashreplace"))
    return path


def print_table(
    results: Sequence[Result],
    failures: Sequence[Failure] = (),
    console: Console | None = None,
    baselines: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Prints the quality and the cost of each arm, and the recommendation, to the terminal.

    Args:
        results: Lines of ``results.jsonl``.
        failures: Arms without a result.
        console: Where to print; standard output by default.
        baselines: Lines of ``baselines.jsonl``, which a doubt may rest on.
    """
    console = console or Terminal()
    if results:
        advice = recommend(results)
        show_table(console, _summary(results, advice.chosen.arm if advice else None))
        if advice:
            console.print(Text("\n" + " ".join(explain(advice)).replace("`", "")))
        for words in doubts(results, baselines):
            console.print(Text(f"warning: {words}".replace("`", ""), style="yellow"))
    for failure in failures:
        console.print(Text(failure_text(failure).replace("`", ""), style="red"))


def _summary(results: Sequence[Result], chosen: str | None) -> Table:
    """Quality and cost side by side, narrow enough for a terminal of 80 columns."""
    tasks = tasks_of(results)
    cost = {row.cells[0].text: row for row in tables.cost_table(results, chosen).rows}
    rows = []
    for row in tables.quality_table(results, chosen).rows:
        of_tasks = [Cell(row.cells[4 + 2 * i].text) for i in range(len(tasks))]
        cells = [row.cells[0], row.cells[2], *of_tasks]
        price = cost.get(row.cells[0].text)
        rows.append(Row((*cells, price.cells[2] if price else Cell("")), row.style))
    name = score_name(results)
    columns = ("arm", f"mean {name}", *tasks, "FLOPs")
    return Table(
        f"{formatting.capital(name)} on the {evaluation_split(results)} split", columns, tuple(rows)
    )


def show_table(console: Console, table: Table) -> None:
    """Prints a table with every number in it, however many tasks there are.

    In a terminal long names are broken, and columns that do not fit are in further tables, each
    with the names. A file has no width of its own: its rows are whole.
    """
    if console.is_terminal:
        console.print(*_rich_tables(table, console.width), sep="")
        return
    drawn = _rich_table(table)
    wide = console.options.update(width=_WIDEST)
    whole_rows = wide.update(width=Measurement.get(console, wide, drawn).maximum)
    console.print(Segments(console.render(drawn, whole_rows)), crop=False, soft_wrap=True)


def _rich_tables(table: Table, width: int) -> list[RichTable]:
    """Tables below each other that fit so many columns of a terminal."""
    names, *columns = zip(
        table.columns, *([cell.shown for cell in row.cells] for row in table.rows), strict=True
    )
    first, widths = name_width(names, width), [max(map(cell_len, column)) for column in columns]
    # Rather a name in more lines than a second table.
    if (room := width - 4 - sum(each + 3 for each in widths)) >= _NARROWEST_NAME:
        first = min(max(map(cell_len, names)), room)
    found = []
    for places in side_by_side(first, widths, width):
        own = [0, *(place + 1 for place in places)]
        part = dataclasses.replace(
            table,
            title="" if found else table.title,
            columns=tuple(table.columns[i] for i in own),
            rows=tuple(Row(tuple(row.cells[i] for i in own), row.style) for row in table.rows),
        )
        found.append(_rich_table(part, first))
    return found


def _rich_table(table: Table, first: int | None = None) -> RichTable:
    """The chosen row is bold; names are broken where they are wider than ``first``."""
    drawn = RichTable(
        title=Text(table.title) if table.title else None,
        title_style="bold",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    drawn.add_column(Text(table.columns[0]), width=first, no_wrap=first is None, overflow="fold")
    for column in table.columns[1:]:
        drawn.add_column(Text(column), justify="right", no_wrap=True)
    styles = {"chosen": "bold", "reference": "dim italic"}
    for row in table.rows:
        cells = [Text(cell.shown) for cell in row.cells]
        drawn.add_row(*cells, style=styles.get(row.style))
    return drawn


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as draft:
        draft.write_bytes(content)
