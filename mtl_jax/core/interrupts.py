"""SIGINT where Python has nothing to make of it: as a process begins, and as it ends."""

from __future__ import annotations

import atexit
import contextlib
import signal
from collections.abc import Iterator


def end_at_once() -> None:
    """Has SIGINT end the process as it does other programs, where Python would raise an error.

    Who ignores it, as nohup does, or has a handler of its own keeps that.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Signals are the main thread's.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Ends what ``end_at_once`` has begun within; from then on only the interpreter's end is so.

    That calls what libraries have registered, and shows the errors that an interrupt makes there.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        # One that is not Python's can't be put back, nor need it.
        with contextlib.suppress(ValueError, TypeError):
            signal.signal(signal.SIGINT, before)
        # Of what is registered the last is called first.
        atexit.unregister(end_at_once)
        atexit.register(end_at_once)
