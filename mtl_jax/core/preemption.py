"""SIGTERM, with which a scheduler announces that a process will be ended.

While a phase is trained, the run goes on to the end of a step, saves, and leaves; at any other
moment nothing would be lost, and it leaves at once. A second one ends the process at once.

In a run of several processes all have to leave together. Before the first step each of them leaves
at once, and tells the others, who do so, too. From then on JAX settles on a step after which all
save and leave. Between two parts of the work each says whether it was told: JAX, whose notice
takes a second to spread, would have none where nobody asks again after that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import cast

from mtl_jax.core import distributed, streams
from mtl_jax.core.errors import SAVED, Preempted
from mtl_jax.core.rendezvous import Peers, has_left

AGAIN = "run the same command again to go on"
_AT_ONCE = f"ended by SIGTERM; what was saved before is there: {AGAIN}"
_NOTED = "SIGTERM: saving after this step"
# Larger than any system's struct sigaction.
_SIGACTION_BYTES = 1024


class _Notice:
    """What this process knows of it.

    Attributes:
        waits: Whether the end of a step is waited for.
        given: Whether the signal has come, to a process by itself.
        told: Whether it has come to this one of several.
        broadcast: Whether several processes have begun to ask for a step to leave after together.
        questions: How often ``due`` has been asked.
    """

    def __init__(self) -> None:
        self.waits = self.given = self.told = self.broadcast = False
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
        streams.tell(_NOTED)


_notice = _Notice()


class _Watch:
    """Heeds SIGTERM in one of several processes, and what the others say of theirs.

    A thread does: the main one may be compiling, or waiting for the others, for minutes. It begins
    when they have met, before JAX waits for all of them.
    """

    def __init__(self, peers: Peers):
        self._peers, self._noted = peers, False
        self._serves = distributed.is_main()
        self._of_jax: ctypes.Array[ctypes.c_char] | None = None
        signal.signal(signal.SIGTERM, _note)
        self._signals, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._before = signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def joined(self) -> None:
        """Takes the signal back from JAX, which has put its own handler in the place of this."""
        self._of_jax = _exchanged(None)
        signal.signal(signal.SIGTERM, _note)

    def stop(self) -> None:
        """Ends the thread; to be called where it was made."""
        signal.set_wakeup_fd(self._before)
        self._woken.close()
        self._thread.join()
        self._signals.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for source in (self._signals, *self._peers.connections):
                source.setblocking(True)
                selector.register(source, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    source = cast("socket.socket", key.fileobj)
                    heard = _received(source)
                    if source is not self._signals:
                        if has_left(heard):
                            self._leave()
                        if not heard:
                            selector.unregister(source)
                    elif not heard:
                        return
                    elif signal.SIGTERM in heard:
                        self._heed()

    def _heed(self) -> None:
        if not _notice.broadcast:
            self._leave()
        if not self._noted:
            self._noted = True
            streams.tell(_NOTED)
            before = _exchanged(self._of_jax)
            signal.raise_signal(signal.SIGTERM)
            _exchanged(before)

    def _leave(self) -> None:
        """Ends this process, where nothing would be lost, and has the others do so."""
        self._peers.tell_left()
        streams.tell(_AT_ONCE)
        if self._serves:
            # The others would fail if it ended before they do.
            time.sleep(distributed.LAST_SECONDS)
        os._exit(SAVED)


def _note(number: int, frame: FrameType | None) -> None:
    del number, frame
    _notice.told = True


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(4096)
    except OSError:
        return b""


def _exchanged(action: ctypes.Array[ctypes.c_char] | None) -> ctypes.Array[ctypes.c_char]:
    """Has another handler for SIGTERM, where one is given; the one that there was.

    Python knows its own handlers only, and JAX's is none of them.
    """
    before = ctypes.create_string_buffer(_SIGACTION_BYTES)
    ctypes.CDLL(None).sigaction(int(signal.SIGTERM), action, before)
    return before


def _told_by_jax() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Heeds SIGTERM, in the main thread of a process of our own; afterwards it is as before.

    A process that has become one of several before leaves the signal to JAX.

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

    watches: list[_Watch] = []
    sys.unraisablehook = hook

    def begin_watch(peers: Peers) -> Callable[[], None]:
        watches.append(_Watch(peers))
        return watches[-1].joined

    distributed.when_met = begin_watch
    try:
        yield
    finally:
        distributed.when_met = None
        for watch in watches:
            watch.stop()
        _notice.given = _notice.told = _notice.broadcast = False
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
    _notice.broadcast = _notice.broadcast or _notice.waits
    return multihost_utils.reached_preemption_sync_point(_notice.questions)


def leave_if_due(*, anew: bool = False) -> None:
    """Leaves between two parts of the work, where all that is done has been saved.

    To be called by every process at the same places, where they wait for each other.

    Args:
        anew: Whether nothing is being saved in the background either: until the next step
            several processes can leave at once, too.

    Raises:
        Preempted: The signal has come, to any of the processes.
    """
    # Both are asked, for all of them have to ask JAX equally often.
    settled, told = due(), distributed.of_any(_notice.told)
    if settled or told:
        raise Preempted(_AT_ONCE)
    if anew:
        _notice.broadcast = False
