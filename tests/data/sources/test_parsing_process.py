"""A file that another process reads is the same file."""

import numpy as np
import psutil
import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.data.sources.files import stream_table
from mtl_jax.data.sources.parsing_process import read_in_process
from mtl_jax.data.table import hashes_of, read_table
from mtl_jax.data.texts import KeepAll
from tests.data.sources.test_files import FIELDS, read


def in_process(path):
    return read_in_process(stream_table(path, FIELDS), stream_table, path, FIELDS)


def test_rows_places_and_notes_are_the_same(tmp_path):
    path = tmp_path / "t.tsv"
    texts = [f"text {i}" for i in range(10_000)]
    texts[7] = '"' + texts[7]
    rows = "".join(f"m{i % 3}\t{text}\n" for i, text in enumerate(texts))
    path.write_text("mood\ttext\n" + rows)
    here, there = read(stream_table(path, FIELDS)), read(in_process(path))
    assert (there.texts, there.labels, there.notes) == (here.texts, here.labels, here.notes)
    assert len(here.notes) == 1
    assert there.place(9_999) == here.place(9_999) == f"{path}, line 10001"


def test_a_table_is_the_same(tmp_path):
    path = tmp_path / "t.csv"
    rows = "".join(f'm{i % 3},"{" " * (i % 4)}text {i % 900}, {i}"\n' for i in range(2_000))
    path.write_text("mood,text\n" + rows)

    def table(opened):
        kinds = {"sentiment": FIELDS.kinds["sentiment"]}
        return read_table(opened, kinds, lambda: (KeepAll(), KeepAll()), set_aside=True)

    here, there = table(lambda: stream_table(path, FIELDS)), table(lambda: in_process(path))
    assert 0 < here.aside.sum() < len(here)
    np.testing.assert_array_equal(there.hashes, here.hashes)
    np.testing.assert_array_equal(there.aside, here.aside)
    np.testing.assert_array_equal(here.hashes[~here.aside], hashes_of(here.texts[0]))
    assert there.texts == here.texts


def test_what_is_wrong_is_told_as_here_and_no_process_is_left(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,mood\n" + "a,up\n" * 9_000 + "a,b,c\n")
    with pytest.raises(UserError, match=r"t\.csv, line 9002: 3 fields and not the header's 2"):
        read(in_process(path))
    begun = in_process(path).rows
    assert len(next(begun).texts) == 4095
    # A reader that is let go of would be told of as a warning if its process went on.
    begun.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_process_that_is_stopped_and_goes_on_loses_nothing(tmp_path, monkeypatch):
    """Interrupted, a write to a pipe ends early."""
    # As containers often have it: standard output has no buffer that would write the rest.
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    path = tmp_path / "t.csv"
    path.write_text("text,mood\n" + "".join(f"{'a' * 50} {i},up\n" for i in range(30_000)))
    texts = []
    for rows in in_process(path).rows:
        (child,) = (
            c for c in psutil.Process().children() if read_in_process.__module__ in c.cmdline()
        )
        # It soon waits: a pipe holds a part of the rows that it sends.
        while child.status() == psutil.STATUS_RUNNING:
            pass
        child.suspend()
        child.resume()
        texts += rows.texts
    assert texts == [f"{'a' * 50} {i}" for i in range(30_000)]
