"""Standard streams whose other ends are gone, full, or must not be waited for."""

import contextlib
import io
import os
import sys
import threading

import pytest

from mtl_jax.core.command_line import guarded
from mtl_jax.core.console import say
from mtl_jax.core.errors import Preempted, UserError
from mtl_jax.core.streams import Descriptor


@contextlib.contextmanager
def full():
    with open("/dev/full", "wb", buffering=0) as file:  # noqa: PTH123
        yield file


@contextlib.contextmanager
def without_reader():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb", buffering=0) as file:
        yield file


ENDS = [
    (None, 0),
    (UserError("a mistake"), 2),
    (Preempted("saved"), 75),
    (KeyboardInterrupt(), 130),
]


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("place", [full, without_reader])
def test_what_nobody_can_be_told_changes_neither_answers_nor_status(
    place, buffered, monkeypatch, tmp_path
):
    for end, status in ENDS:
        with (tmp_path / "answers").open("w") as answers, place() as raw:
            errors = io.TextIOWrapper(
                io.BufferedWriter(raw) if buffered else raw, write_through=not buffered
            )
            monkeypatch.setattr(sys, "stdout", answers)
            monkeypatch.setattr(sys, "stderr", errors)

            def main(argv, end=end):
                print("the first answer")
                say("a note")
                print("words " * 10_000, file=sys.stderr, flush=True)
                print("the second answer")
                if end:
                    raise end

            assert guarded(main, []) == status
            assert sys.stderr is errors
            monkeypatch.undo()
            # Each closes what it was made of.
            below = errors.detach()
            if buffered:
                below.detach()
        assert (tmp_path / "answers").read_text() == "the first answer\nthe second answer\n"


@pytest.mark.parametrize("encoding", ["idna", "undefined", "ascii"])
def test_an_encoding_that_lacks_a_letter_loses_no_line(encoding, monkeypatch, tmp_path):
    words = f"a text. {'long ' * 30}é"
    with (tmp_path / "said").open("w", encoding=encoding) as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "stderr", file)

        def main(argv):
            print(words)
            raise UserError(words)

        assert guarded(main, []) == 2
        monkeypatch.undo()
    said = sorted((tmp_path / "said").read_text("utf-8").splitlines())
    known = words.replace("é", "\\xe9") if encoding == "ascii" else words
    assert said == [known, f"error: {known}"]


def test_a_pipe_that_does_not_block_is_waited_for():
    """Else a reader takes a pause for the end, and a writer loses what finds no room."""
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    lines = [b"a book\n" * 10_000, b"a film ", b"and its end\n"]
    written, looked = threading.Event(), threading.Event()

    def fill():
        with io.BufferedWriter(Descriptor(write, "w")) as out:
            out.write(lines[0])
            out.write(lines[1])
            out.flush()
            written.set()
            assert looked.wait(60)
            out.write(lines[2])

    writer = threading.Thread(target=fill)
    writer.start()
    found = []
    with io.BufferedReader(Descriptor(read)) as source:
        for line in source:
            found.append(line)
            if len(found) == 10_000:
                # The rest of the next line is not there yet.
                assert written.wait(60)
                looked.set()
    writer.join()
    assert b"".join(found) == b"".join(lines)
    assert found[-1] == b"a film and its end\n"
