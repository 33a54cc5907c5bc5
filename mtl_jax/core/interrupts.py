"""SIGINT where Python has nothing to make of it: as a process begins or ends, and in finalizers."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

# After which an interrupt is tried again that came to nothing.
_AGAIN_SECONDS = 0.01


def end_at_once() -> None:
    """Has SIGINT end the process as it does other programs, where Python would raise an error.

    Who ignores it, as nohup does, or has a handler of its own keeps that.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Signals are the main thread's.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Lets no interrupt come to nothing.

    One that is raised in a finalizer, or in what is called as garbage is collected, is sent again.
    Afterwards all is as before ``end_at_once`` was called within, and only the interpreter's end is
    so: it calls what libraries have registered, and shows the errors of an interrupt there.
    """
    before, told = signal.getsignal(signal.SIGINT), sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            told(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = told
        # One that is not Python's can't be put back, nor need it.
        with contextlib.suppress(ValueError, TypeError):
            signal.signal(signal.SIGINT, before)
        # Of what is registered the last is called first.
        atexit.unregister(end_at_once)
        atexit.register(end_at_once)
