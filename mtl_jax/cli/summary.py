"""What a command shows in a terminal in the place of JSON."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mtl_jax.config.tasks import SCORES, Kind
from mtl_jax.core.console import Terminal

if TYPE_CHECKING:
    from mtl_jax.studies.report.document import Table as ReportTable
    from mtl_jax.tools.evaluate import Evaluation

_COLUMNS: Mapping[Kind, Mapping[str, str]] = {
    "single_label": {"accuracy": "accuracy", "macro_f1": "macro-F1"},
    "multi_label": {
        "subset_accuracy": "subset accuracy",
        "micro_f1": "micro-F1",
        "macro_f1": "macro-F1",
        "hamming_loss": "Hamming loss",
    },
    "regression": {
        "r2": "R2",
        "rmse": "RMSE",
        "mae": "MAE",
        "pearson": "Pearson",
        "spearman": "Spearman",
    },
}
"""The metrics of a kind by their names for a reader."""
_OTHERS = ("examples", "loss", "weighted_f1_by_source", "per_class", "ece")


def shows_tables(*, json: bool) -> bool:
    """Whether a person reads standard output, and has not asked for JSON."""
    return not json and sys.stdout is not None and sys.stdout.isatty()


def metrics_tables(
    title: str, metrics: Mapping[str, Any], baseline: Mapping[str, Any] | None = None
) -> list[Table]:
    """A table for each kind of task that there is, with a row for each task.

    Args:
        title: What the metrics are of.
        metrics: Per task, as of ``split_metrics``.
        baseline: The same of a bag of words on the same texts, if any.
    """
    tables = []
    for kind, columns in _COLUMNS.items():
        of_kind = {task: found for task, found in metrics.items() if _kind(found) == kind}
        if of_kind:
            tables.append(_table(title, columns, SCORES[kind], of_kind, baseline))
    return tables


def _kind(metrics: Mapping[str, Any]) -> Kind:
    from mtl_jax.training.metrics import of_metrics

    return of_metrics(metrics).name


def _table(
    title: str,
    columns: Mapping[str, str],
    score: str,
    metrics: Mapping[str, Any],
    baseline: Mapping[str, Any] | None,
) -> Table:
    known = (*columns, *_OTHERS)
    more = [name for name in next(iter(metrics.values())) if name not in known]
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("task", overflow="fold")
    titles = ["texts", *columns.values(), *more]
    for name in [*titles, *([f"{columns[score]} of TF-IDF"] if baseline else [])]:
        table.add_column(name, justify="right")
    for task, found in metrics.items():
        values = [found[name] for name in (*columns, *more)]
        values += [baseline[task][score]] if baseline else []
        cells = [f"{found['examples']:,}", *("-" if v is None else f"{v:.3f}" for v in values)]
        table.add_row(Text(task), *cells)
    return table


def show_result(workdir: str, result: Mapping[str, Any]) -> None:
    """Prints what a run has reached, and the two commands that come next."""
    terminal = Terminal()
    terminal.print(
        *metrics_tables("validation", result["validation"], result["text_baseline"]),
        *(metrics_tables("test", result["test"]) if result["test"] else []),
        sep="\n",
    )
    folder, split = shlex.quote(workdir), "test" if result["test"] else "validation"
    terminal.print(
        "next:",
        f"  python -m mtl_jax evaluate --workdir {folder} --split {split}",
        f"  python -m mtl_jax predict --workdir {folder} < texts.txt",
        sep="\n",
        soft_wrap=True,
    )


def show_evaluation(found: Evaluation, terminal: Terminal | None = None) -> None:
    """Prints the metrics of a split, and what is behind them, as tables that fit the terminal.

    Args:
        found: What a run does on the split.
        terminal: Where to print; standard output by default.
    """
    from mtl_jax.studies.report.document import Paragraph
    from mtl_jax.studies.report.document import Table as ReportTable

    terminal = terminal or Terminal()
    terminal.print(*metrics_tables(found.split, found.metrics), sep="\n")
    for _, blocks in found.sections(terminal.width):
        for block in blocks:
            if isinstance(block, ReportTable):
                terminal.print("", report_table(block), sep="\n")
                if block.note:
                    terminal.print(Text(block.note, style="dim"))
            elif isinstance(block, Paragraph):
                terminal.print("", Text(block.text), sep="\n")


def report_table(table: ReportTable) -> Table:
    """A table of a report for a terminal: names are folded, and never dropped."""
    drawn = Table(title=Text(table.title), title_justify="left", title_style="bold")
    for index, column in enumerate(table.columns):
        left = index == 0 or table.textual
        drawn.add_column(Text(column), justify="left" if left else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell.shown) for cell in row.cells))
    return drawn
