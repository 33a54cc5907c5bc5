"""Reads a large file in another process: to parse and hash it, and what follows, go on together."""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from mtl_jax.core.errors import UserError
from mtl_jax.data.sources.base import Fields, Rows, Stream

# A process takes a moment to start, and a core of its own to be of use.
LARGE = 64 * 2**20


def pays(size: int) -> bool:
    """Whether a file of so many bytes is read sooner so."""
    return size > LARGE and len(os.sched_getaffinity(0)) > 1


def read_in_process(
    stream: Stream, read: Callable[[Path, Fields], Stream], path: Path, fields: Fields
) -> Stream:
    """The same stream, read by another process from the same file.

    Args:
        stream: What ``read`` has given here; its rows are left alone.
        read: A function that the other process can import.
        path: As of ``read``.
        fields: As of ``read``.
    """
    asked = pickle.dumps((read, path, fields))

    def rows() -> Iterator[Rows]:
        # It may import this package only from where this process has it.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", __name__]
        with subprocess.Popen(  # noqa: S603  (nothing of it comes from the user)
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("the process has no pipes")
            try:
                with process.stdin:
                    process.stdin.write(asked)
                while not isinstance(found := _next(process.stdout, path), list):
                    yield found
                stream.notes.extend(found)
            finally:
                process.kill()

    return Stream(rows(), stream.place, stream.notes)


def _next(pipe: IO[bytes], path: Path) -> Rows | list[str]:
    """What the other process sends: rows, notes at the end, or what it raised."""
    try:
        found = pickle.load(pipe)  # noqa: S301  (from a process of this package)
    except (EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"the process that reads {path} has ended: is there memory for it? Run it again"
        ) from error
    if isinstance(found, Exception):
        raise found
    return found


def _main() -> None:
    from mtl_jax.data.table import digests_of

    read, path, fields = pickle.load(sys.stdin.buffer)  # noqa: S301
    # Python's search for cycles, of which rows have none, takes a sixth of the time.
    gc.disable()
    # Not sys.stdout.buffer: with PYTHONUNBUFFERED that drops the rest of what a signal interrupts.
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:
        try:
            stream = read(path, fields)
            for rows in stream.rows:
                known = dataclasses.replace(rows, digests=digests_of(rows.texts))
                pickle.dump(known, out, pickle.HIGHEST_PROTOCOL)
            pickle.dump(stream.notes, out)
        except UserError as error:
            pickle.dump(error, out)


if __name__ == "__main__":
    try:
        _main()
    except (BrokenPipeError, KeyboardInterrupt):
        # Whoever asked is gone. What is left in the buffer can't be written, either.
        os._exit(1)
