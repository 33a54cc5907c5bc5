"""SIGTERM, with which a scheduler announces that a process will be ended.

While a phase is trained, the run goes on to the end of a step, saves, and leaves; at any other
moment nothing would be lost, and it leaves at once. A second one ends the process at once.

In a run of several processes JAX handles the signal, and all have to leave together: at any other
moment the run goes on until all of them ask next, and a second signal does nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from mtl_jax.errors import Preempted

AGAIN = "run the same command again to go on"
_AT_ONCE = f"ended by SIGTERM; what was saved before is there: {AGAIN}"
_NOTED = b"SIGTERM: saving after this step\n"


class _Notice:
    """What this process knows of it.

    Attributes:
        waits: Whether the end of a step is waited for.
        given: Whether the signal has come.
        questions: How often ``due`` has been asked.
    """

    def __init__(self) -> None:
        self.waits = self.given = False
        self.questions = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal; a second one ends the process as if this had not been here."""
        del frame
        signal.signal(number, signal.SIG_DFL)
        # Before it is raised: in a finalizer, or in what is called as garbage is collected, that
        # would come to nothing.
        self.given = True
        if not self.waits:
            raise Preempted(_AT_ONCE)
        # Not through a stream: what is interrupted here may be writing to that.
        os.write(2, _NOTED)


_notice = _Notice()


def _told_by_jax() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Heeds SIGTERM, in the main thread of a process of our own; afterwards it is as before.

    Where JAX makes the process one of several it handles the signal itself, from then on.

    Raises:
        Preempted: The signal has come.
    """
    if _told_by_jax():
        yield
        return
    before, told = signal.signal(signal.SIGTERM, _notice), sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        # It is noted, and raised again where that can be.
        if not issubclass(unraisable.exc_type, Preempted):
            told(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        _notice.given = False
        sys.unraisablehook = told
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """While steps are taken: the signal is noted for ``due``, or for the end of this.

    Raises:
        Preempted: It has come, and been noted only, in these steps or before them.
    """
    if _notice.given:
        raise Preempted(_AT_ONCE)
    _notice.waits = True
    try:
        yield
    finally:
        _notice.waits = False
    if _notice.given:
        raise Preempted(f"ended by SIGTERM, saved: {AGAIN}")


def due() -> bool:
    """Whether the run is to save now and leave: the same in all of its processes.

    To be asked by every process at the same places, as after each step.
    """
    if not _told_by_jax():
        return _notice.given
    from jax.experimental import multihost_utils

    # Not the steps are counted, some of which may be taken many at once: JAX settles on the
    # first number that no process has come to yet, and each of them has to come to that.
    _notice.questions += 1
    return multihost_utils.reached_preemption_sync_point(_notice.questions)


def leave_if_due() -> None:
    """Leaves between two parts of the work, where all that is done has been saved.

    To be called by every process at the same places.

    Raises:
        Preempted: The signal has come.
    """
    if due():
        raise Preempted(_AT_ONCE)
