"""Several processes that are started, heard, told to stop and waited for together."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from mtl_jax.core.errors import SAVED

_LOOK_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Ended:
    """How the processes have ended.

    Attributes:
        statuses: Their exit statuses in the order of their ends; 128 + n for signal n.
        of_each: The same in the order in which they were started.
        told: Whether this process was asked to stop, and passed that on.
    """

    statuses: tuple[int, ...]
    of_each: tuple[int, ...]
    told: bool

    @property
    def status(self) -> int:
        """The first that is not 0, if any.

        What the SIGTERM that was passed on has ended at once had not begun, or a second one
        cut it short: like what has saved it can be gone on with.
        """
        first = next((status for status in self.statuses if status), 0)
        return SAVED if self.told and first == 128 + signal.SIGTERM else first


def run_together(
    commands: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    grace: float,
    *,
    alone: bool = False,
) -> Ended:
    """Runs commands at once, until all have ended.

    What the first one says is said here; the others' lines go to standard error with their
    numbers. SIGTERM and SIGINT are passed on, and the end of the terminal as SIGTERM. Each has
    a process group of its own, so that what a terminal sends comes once.

    Args:
        commands: The command lines.
        environments: The whole environment of each.
        grace: Seconds that the others have when one has failed: those who are not about to
            end are told to at once, and those who are left then are killed.
        alone: Whether each goes on when another one has failed.

    Returns:
        How they have ended.
    """
    ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    children: list[subprocess.Popen[bytes]] = []
    told = False

    def tell(number: int) -> None:
        nonlocal told
        if number == signal.SIGHUP:
            # It comes from the terminal, and from the shell in it again.
            if told:
                return
            number = signal.SIGTERM
        told = True
        for child in children:
            child.send_signal(number)

    with _passing_on(tell):
        threads = []
        for number, (command, environment) in enumerate(zip(commands, environments, strict=True)):
            child = subprocess.Popen(  # noqa: S603  (no shell reads it)
                command,
                env=environment,
                process_group=0,
                stdout=subprocess.PIPE if number else None,
                stderr=subprocess.STDOUT if number else None,
            )
            children.append(child)
            thread = threading.Thread(target=_attend, args=(child, number, ended), daemon=True)
            thread.start()
            threads.append(thread)
        statuses: dict[int, int] = {}
        deadline = None
        while len(statuses) < len(children):
            if deadline is not None and time.monotonic() > deadline:
                for child in children:
                    child.kill()
            try:
                # Not for good: a signal just before the wait is seen to after it.
                number, status = ended.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            statuses[number] = status
            if status and deadline is None and not alone:
                deadline = time.monotonic() + grace
                # A second SIGTERM would cut a process short that is saving after a first one.
                if status != SAVED and not told:
                    for child in children:
                        child.terminate()
        for thread in threads:
            thread.join()
    in_order = (statuses[number] for number in range(len(children)))
    return Ended(tuple(statuses.values()), tuple(in_order), told)


def _attend(
    child: subprocess.Popen[bytes], number: int, ended: queue.SimpleQueue[tuple[int, int]]
) -> None:
    """Says what a process says, and then how it has ended."""
    if child.stdout is not None:
        with child.stdout as lines:
            _say_lines(lines, f"[{number}] ".encode())
    status = child.wait()
    ended.put((number, status if status >= 0 else 128 - status))


def _say_lines(lines: IO[bytes], prefix: bytes) -> None:
    for line in lines:
        # A terminal may be gone: who speaks must not wait for ever for somebody to listen.
        with contextlib.suppress(OSError):
            # In one piece: the others write, too.
            sys.stderr.buffer.write(prefix + line.removesuffix(b"\n") + b"\n")
            sys.stderr.buffer.flush()


@contextlib.contextmanager
def _passing_on(tell: Callable[[int], None]) -> Iterator[None]:
    # Where nohup has it ignored, it is to stay so.
    stays = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = (signal.SIGTERM, signal.SIGINT, *(() if stays else (signal.SIGHUP,)))
    before = {n: signal.signal(n, lambda number, _frame: tell(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
