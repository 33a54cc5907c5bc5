"""What a command shows in a terminal in the place of JSON."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from mtl_jax.core.console import Terminal

_COLUMNS = ("texts", "accuracy", "macro-F1")
_KNOWN = ("accuracy", "macro_f1", "examples", "loss", "weighted_f1_by_source")


def shows_tables(*, json: bool) -> bool:
    """Whether a person reads standard output, and has not asked for JSON."""
    return not json and sys.stdout is not None and sys.stdout.isatty()


def metrics_table(
    title: str, metrics: Mapping[str, Any], baseline: Mapping[str, Any] | None = None
) -> Table:
    """A row for each task.

    Args:
        title: What the metrics are of.
        metrics: Per task, as of ``split_metrics``.
        baseline: The same of a bag of words on the same texts, if any.
    """
    more = [name for name in next(iter(metrics.values()), {}) if name not in _KNOWN]
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("task", overflow="fold")
    titles = [*_COLUMNS, *more, *(["macro-F1 of TF-IDF"] if baseline else [])]
    for name in titles:
        table.add_column(name, justify="right")
    for task, found in metrics.items():
        values = [found["accuracy"], found["macro_f1"], *(found[name] for name in more)]
        values += [baseline[task]["macro_f1"]] if baseline else []
        cells = [f"{found['examples']:,}", *("-" if v is None else f"{v:.3f}" for v in values)]
        table.add_row(Text(task), *cells)
    return table


def show_result(workdir: str, result: Mapping[str, Any]) -> None:
    """Prints what a run has reached, and the two commands that come next."""
    terminal = Terminal()
    terminal.print(
        metrics_table("validation", result["validation"], result["text_baseline"]),
        *([metrics_table("test", result["test"])] if result["test"] else []),
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


def show_metrics(split: str, metrics: Mapping[str, Any]) -> None:
    """Prints the metrics of a split, and each task's weighted F1 by source where there is one."""
    terminal = Terminal()
    terminal.print(metrics_table(split, metrics))
    for task, found in metrics.items():
        if by_source := found["weighted_f1_by_source"]:
            table = Table(title=f"{task}: weighted F1 by source", title_justify="left")
            table.add_column("source", overflow="fold")
            table.add_column("weighted F1", justify="right")
            for source, value in by_source.items():
                table.add_row(Text(source), f"{value:.3f}")
            terminal.print(table)
