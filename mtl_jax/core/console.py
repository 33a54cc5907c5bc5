"""What a run says while it works, on standard error."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtl_jax.core import distributed

# Columns and lines of a terminal at least, whatever it says of itself: in none nothing is shown.
_SMALLEST = ConsoleDimensions(40, 10)
# What the environment may say of them: rich takes any digits, of any script, and trips over some.
_SIZES, _SIZE = ("COLUMNS", "LINES"), re.compile("[0-9]{1,4}")


class Terminal(Console):
    """A console that shows every text as it stands, however small the terminal says it is."""

    def __init__(self, **settings: Any):
        known = {
            name: value
            for name, value in os.environ.items()
            if name not in _SIZES or _SIZE.fullmatch(value)
        }
        shown = {"markup": False, "emoji": False, "highlight": False, "_environ": known}
        super().__init__(**{**shown, **settings})

    @property
    def size(self) -> ConsoleDimensions:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Columns and lines."""
        return ConsoleDimensions(*map(max, super().size, _SMALLEST))

    def on_broken_pipe(self) -> None:
        """Leaves it to the caller, where rich would end the process and drop its answers."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


_console = Terminal(stderr=True, soft_wrap=True)


def say(message: str) -> None:
    """Prints one line; of several processes the first does."""
    if not distributed.is_main():
        return
    # A run does not end because what it says can't be written, as on a full disk.
    with contextlib.suppress(OSError):
        _console.print(message)


def say_awaited(what: str) -> None:
    """Says on a terminal what is being waited for, before anything that takes seconds is imported.

    A log has no need of it.
    """
    if is_terminal():
        say(f"{what} ...")


def is_terminal() -> bool:
    """Whether there is someone to draw a bar for."""
    return _console.is_terminal


def duration(seconds: float) -> str:
    """5400 -> ``1 h 30 min``."""
    if (whole := round(seconds)) < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def scaled(value: float, base: int, units: Sequence[str]) -> str:
    """1536, of 1024 and bytes -> ``1.5 KiB``."""
    power = 0
    while value >= base and power + 1 < len(units):
        value, power = value / base, power + 1
    return f"{value:.{1 if power else 0}f} {units[power]}".rstrip()


def in_bytes(size: float) -> str:
    """1536 -> ``1.5 KiB``."""
    return scaled(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def name_width(names: Sequence[str], width: int) -> int:
    """How wide the column with the names of rows is: of half a terminal at most, which breaks them.

    Args:
        names: The names, and the title of their column.
        width: Columns of the terminal.
    """
    return min(max(map(cell_len, names)), width // 2 - 4)


def side_by_side(first: int, widths: Sequence[int], width: int) -> list[list[int]]:
    """Which columns of a table fit beside the names of its rows, in tables below each other.

    Args:
        first: The width of the names.
        widths: Those of the other columns.
        width: Columns of the terminal.

    Returns:
        The places of the columns in each table, each with one at least.
    """
    found, places = [], list(range(len(widths)))
    while places:
        # Each column has its border and a space on either side.
        ends = itertools.accumulate((widths[place] + 3 for place in places), initial=first + 4)
        fitting = max(sum(end <= width for end in ends) - 1, 1)
        found.append(places[:fitting])
        places = places[fitting:]
    return found


@contextlib.contextmanager
def training_bar(title: str, total: int, done: int) -> Iterator[Callable[..., None]]:
    """A progress bar with the time left where there is a terminal, and nothing elsewhere.

    Yields:
        ``update(done, losses, rate)``: steps done, mean loss per task, examples per second.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        TimeRemainingColumn(),
    )
    shown = _console.is_terminal and distributed.is_main()
    with Progress(*columns, console=_console, transient=True, disable=not shown) as progress:
        bar = progress.add_task(title, total=total, completed=done, status="compiling")

        def update(done: int, losses: Mapping[str, float], rate: float) -> None:
            words = [f"{task} {loss:.3f}" for task, loss in losses.items()]
            status = "  ".join([*words, f"{rate:.0f} examples/s"])
            progress.update(bar, completed=done, status=status)

        yield update
