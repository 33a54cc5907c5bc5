"""What a search of fewer settings would have found: its table and its figure."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from matplotlib.ticker import FuncFormatter, NullLocator

from mtl_jax.studies.report.axes import panel_row
from mtl_jax.studies.report.document import Block, Cell, Heading, Picture, Row, Table
from mtl_jax.studies.report.figures import png
from mtl_jax.studies.report.palette import styled
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.resampling import expected_best

if TYPE_CHECKING:
    from collections.abc import Sequence


def search_blocks(scores: Sequence[float]) -> list[Block]:
    """Expected validation performance of a search, by its number of trials.

    Args:
        scores: Validation score of each trial; nothing is said of fewer than two.
    """
    if len(scores) < 2:
        return []
    return [
        Heading("What a smaller search would have found"),
        Picture(
            "search.png",
            functools.partial(_plot, scores),
            "Expected validation macro-F1 of the best of n settings, drawn at random from those "
            "tried. Where it is flat, more settings of the kind buy nothing.",
        ),
        search_table(scores),
    ]


def search_table(scores: Sequence[float]) -> Table:
    """The expected best at 1, 2, 4 … trials and at all of them."""
    curve = expected_best(scores)
    best = max(scores)
    counts = sorted({*(2**i for i in range(len(scores).bit_length())), len(scores)})
    rows = [
        Row(
            (
                Cell(formatting.count_of(n, "setting")),
                Cell(formatting.fixed(curve[n - 1])),
                Cell(formatting.signed(curve[n - 1] - best)),
            )
        )
        for n in counts
    ]
    return Table(
        "Expected validation performance",
        ("tried", "best macro-F1 on validation", "minus the best found"),
        tuple(rows),
        "Dodge et al., Show Your Work, 2019, arXiv:1909.03004: drawn with replacement, so that "
        "even as many draws as there are settings may miss the best. A setting's score is its "
        "mean over seeds; one that has diverged with any seed counts as 0.",
    )


def _plot(scores: Sequence[float]) -> bytes:
    curve = expected_best(scores)
    trials = range(1, len(curve) + 1)
    with styled():
        figure, (axes,) = panel_row(1, 3.4)
        axes.plot(trials, curve, marker="o", ms=4)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("settings tried (log scale)")
        axes.set_ylabel("expected best macro-F1")
    return png(figure)
