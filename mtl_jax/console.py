"""What a run says while it works, on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtl_jax import processes

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Prints one line; of several processes the first does."""
    if processes.is_main():
        _console.print(message, markup=False)


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


@contextlib.contextmanager
def training_bar(title: str, total: int, done: int) -> Iterator[Callable[..., None]]:
    """A progress bar with the time left where there is a terminal, and nothing elsewhere.

    Yields:
        ``update(done, losses, rate)``: steps done, mean loss per task, examples per second.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    shown = _console.is_terminal and processes.is_main()
    with Progress(*columns, console=_console, transient=True, disable=not shown) as progress:
        bar = progress.add_task(title, total=total, completed=done, status="compiling")

        def update(done: int, losses: Mapping[str, float], rate: float) -> None:
            words = [f"{task} {loss:.3f}" for task, loss in losses.items()]
            status = "  ".join([*words, f"{rate:.0f} examples/s"])
            progress.update(bar, completed=done, status=status)

        yield update
