"""How an arm looks in every figure: one colour, one marker, the same everywhere."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.colors import LinearSegmentedColormap, to_hex

from mtl_jax.studies.stats.results import arm_order

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from contextlib import AbstractContextManager

INK = "#1c2024"
SOFT = "#6b737b"
GRID = "#e6e9ec"

# Okabe & Ito, "Color Universal Design", 2008: distinct under every common colour blindness.
# Yellow is left out, being too faint on white.
_FIXED = {
    "all_frozen": ("#7f7f7f", "X"),
    "backbone_frozen": ("#E69F00", "o"),
    "none_frozen": ("#0072B2", "D"),
}
# Those that freeze the head of one task.
_HEADS = (("#CC79A7", "^"), ("#56B4E9", "v"))
_OTHERS = (
    ("#D55E00", "P"),
    ("#000000", "*"),
    ("#8c564b", "h"),
    ("#5d3a9b", "d"),
    ("#882255", "p"),
    ("#999933", "<"),
    ("#332288", ">"),
)

# How deep one trains is an order, so top_1, top_2 … are steps of one green, pale to dark.
_DEPTH = LinearSegmentedColormap.from_list("depth", ["#7fd6b8", "#009E73", "#00573f"])

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 200,
    # The names of arms and settings are texts of users.
    "text.parse_math": False,
}


@dataclasses.dataclass(frozen=True)
class Look:
    """The colour and the marker of one arm; those of controls are hollow."""

    colour: str
    marker: str
    hollow: bool = False

    @property
    def line(self) -> dict[str, Any]:
        """As arguments of a line of Matplotlib."""
        fill = "white" if self.hollow else self.colour
        return {"color": self.colour, "marker": self.marker, "mfc": fill}


def styled() -> AbstractContextManager[None]:
    """The fonts, colours and lines that every figure is drawn and saved with."""
    return mpl.rc_context(_STYLE)


def looks(arms: Sequence[str], controls: Collection[str] = ()) -> dict[str, Look]:
    """The look of each arm of a study.

    Args:
        arms: Every arm of the study, also those that the figure at hand leaves out, so
            that all its figures agree.
        controls: Those whose markers are hollow; see ``arms.control_heads``.
    """
    ordered = arm_order(arms)
    depths = [arm for arm in ordered if re.fullmatch(r"top_\d+", arm)]
    found: dict[str, Look] = {}
    others = heads = 0
    for arm in ordered:
        if arm in depths:
            place = depths.index(arm) / (len(depths) - 1) if len(depths) > 1 else 0.5
            found[arm] = Look(to_hex(_DEPTH(place)), "s")
        elif arm in _FIXED:
            found[arm] = Look(*_FIXED[arm])
        elif arm.endswith("_frozen") and heads < len(_HEADS):
            found[arm] = Look(*_HEADS[heads])
            heads += 1
        else:
            found[arm] = Look(*_OTHERS[others % len(_OTHERS)])
            others += 1
    return {a: dataclasses.replace(look, hollow=a in controls) for a, look in found.items()}
