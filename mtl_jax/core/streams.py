"""Standard streams as the commands use them, whatever is at their other ends.

What is read of standard input and written to standard output is whole, or an error that names it.
Standard error is for what is said about the work, which goes on where nobody can be told.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any


class Descriptor(io.FileIO):
    """A file descriptor that is waited for, also where it was made not to block.

    Whoever shares a pipe or a terminal with this process may have made it so. Python takes that
    for the end of what there is to read, and drops what can't be written at once.
    """

    def readinto(self, buffer: Any, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Reads at least a byte, or none at the end."""
        while (size := super().readinto(buffer)) is None:
            self._wait(select.POLLIN)
        return size

    def write(self, data: Any, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Writes at least a byte."""
        while (size := super().write(data)) is None:
            self._wait(select.POLLOUT)
        return size

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self, event)
        poll.poll()


class _Answers(io.TextIOWrapper):
    """Standard output, by whose errors it can be told which file could not be written."""

    def write(self, text: str, /) -> int:
        with _named_in_errors():
            return super().write(text)

    def flush(self) -> None:
        with _named_in_errors():
            super().flush()


@contextlib.contextmanager
def _named_in_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = "standard output"
        raise


class _Words(io.TextIOWrapper):
    """Standard error, without which all goes on: its reader has left, or its disk is full."""

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


@contextlib.contextmanager
def answers() -> Iterator[None]:
    """Has standard output escape what its encoding lacks, and name itself in its errors."""
    with _in_the_place_of("stdout", _Answers):
        yield


@contextlib.contextmanager
def words() -> Iterator[None]:
    """Has standard error fail in nothing that is written to it."""
    with _in_the_place_of("stderr", _Words):
        yield


@contextlib.contextmanager
def _in_the_place_of(name: str, kind: type[io.TextIOWrapper]) -> Iterator[None]:
    # Whoever has put something in its place knows better.
    if type(before := getattr(sys, name)) is not io.TextIOWrapper:
        yield
        return
    # With PYTHONUNBUFFERED there is none, and what a signal has interrupted is not gone on with.
    unbuffered = isinstance(before.buffer, io.RawIOBase)
    buffer, layers = before.buffer, []
    with contextlib.suppress(OSError):
        buffer = io.BufferedWriter(Descriptor(before.fileno(), "w", closefd=False))
        layers.append(buffer)
    stream = kind(
        buffer,
        _usable(before.encoding),
        "backslashreplace",
        line_buffering=before.line_buffering or unbuffered,
        write_through=before.write_through and not unbuffered,
    )
    setattr(sys, name, stream)
    try:
        yield
    finally:
        if getattr(sys, name) is stream:
            setattr(sys, name, before)
        for layer in (stream, *layers):
            try:
                layer.detach()
            except OSError:
                drop(before)
                layer.detach()


def _usable(encoding: str) -> str:
    """The encoding, or UTF-8 where it is for something else than text of any kind.

    ``PYTHONIOENCODING`` takes any codec of Python's, such as that of names of the net.
    """
    try:
        "a line: ä … 😀".encode(encoding, "backslashreplace")
    except (LookupError, UnicodeError):
        return "utf-8"
    return encoding


def keep_descriptors() -> None:
    """Keeps the numbers of standard streams that are closed from files that are opened later."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        # Else what is meant for it would be printed on standard output.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def end() -> None:
    """Leaves the interpreter nothing to write at its end, when it could only fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            drop(stream)


def drop(stream: Any) -> None:
    """Lets what is still to be written to a stream go nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(message: str) -> None:
    """Writes a line to standard error past its stream, which what is interrupted may be using."""
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode())
