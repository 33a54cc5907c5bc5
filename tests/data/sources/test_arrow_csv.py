"""A large CSV file is read as ``csv.reader`` reads it, to the line of what is wrong."""

import csv
import io
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtl_jax.data.columns import Column
from mtl_jax.data.kinds import KINDS
from mtl_jax.data.sources import arrow_csv, delimited
from mtl_jax.data.sources.arrow_csv import LARGE
from mtl_jax.data.sources.files import stream_table
from mtl_jax.data.sources.values import Labels, UnusableError
from tests.data.sources.test_files import FIELDS, read

CELLS = st.text('a\u00e9 ",\n\r\0', max_size=5)
WELL_WRITTEN = st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=12)


def outcome(read_csv):
    """Cells with their lines, and the error at the end if there is one."""
    found, error = [], None
    try:
        sheet = read_csv()
        assert sheet.header == ["a", "b", "c"]
        for block in sheet.blocks:
            columns = [block.texts(place) for place in (0, 2)]
            cells = list(block.cells(2))
            assert cells == columns[1]
            lines = [block.lines.get(row) for row in range(len(block.firsts))]
            found += zip(*columns, block.firsts, lines, strict=True)
    except delimited.MalformedError as malformed:
        error = (malformed.line, str(malformed))
    except UnicodeDecodeError:
        error = "no UTF-8"
    return found, error


def both(path, content, size):
    """What each of the two readers makes of a file."""
    path.write_bytes(content)

    def opened():
        return path.open(encoding="utf-8-sig", newline="")

    wanted = ["a", "c"]
    return (
        outcome(lambda: arrow_csv.read_csv(path, opened, wanted, size)),
        outcome(lambda: delimited.read_csv(opened)),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("csv") / "t.csv"


# With the other line end a writer leaves a carriage return as it stands.
WRITERS = st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL)])


@given(rows=WELL_WRITTEN, size=st.integers(1, 40), writer=WRITERS)
def test_what_a_writer_has_written(path, rows, size, writer):
    buffer = io.StringIO(newline="")
    made = csv.writer(buffer, lineterminator=writer[0], quoting=writer[1])
    made.writerows([("a", "b", "c"), *rows])
    found, known = both(path, buffer.getvalue().encode(), size)
    assert found == known
    assert [row[:2] for row in found[0]] == [(row[0], row[2]) for row in rows]


@given(content=st.text('ab,,,"\n\n\r\u00e9', max_size=40), size=st.integers(1, 30))
@example(content='a"b,c,d\n"e\nf",g,h\n', size=8)
@example(content='"a"b,c,d\n', size=8)
@example(content="a,b,c\n\n\r\nd,e\n", size=100)
@example(content='a,"b\n', size=2)
@example(content="\n\n", size=2)
@example(content="1,2,3\n\n\n\n4,5,6\n", size=2)
def test_what_nobody_should_have_written(path, content, size):
    for start in ("a,b,c\n", "\ufeff\na,b,c\r\n1,2,3\n"):
        found, known = both(path, (start + content).encode(), size)
        assert found[1] == known[1]
        # Where an error follows, the rows of its own block are not given.
        assert found[0] == known[0] if found[1] is None else known[0] == []


def test_bytes_that_are_no_utf_8_in_a_column_that_nobody_wants(path):
    found, known = both(path, b"a,b,c\n1,2,3\n4,\xff,5\n", 6)
    assert found[1] == known[1] == "no UTF-8"


def test_a_large_file_and_the_line_of_what_is_wrong_in_it(tmp_path):
    text = "some words, and a 'few' more of them " * 4
    rows = [f'{i},"{text}{i}",{("up", " down ", "")[i % 3]}\n' for i in range(LARGE // 140)]
    rows[7] = f'7,"{text}\r\n""two"" lines",up\n\n'
    path = tmp_path / "t.csv"
    path.write_text("id,text,mood\n" + "".join(rows), newline="")
    assert path.stat().st_size > LARGE
    found = read(stream_table(path, FIELDS))
    assert found.texts[6:9] == [f"{text}6", f'{text}\r\n"two" lines', f"{text}8"]
    assert found.labels["sentiment"][:4] == ["up", "down", None, "up"]
    assert (len(found.texts), found.notes) == (len(rows), ())
    # Row 7 has a line more, and a blank one follows it.
    places = [found.place(i).rsplit(" ")[-1] for i in (7, 8, len(rows) - 1)]
    assert places == ["9", "12", str(len(rows) + 3)]
    with path.open("a") as file:
        file.write("1,2\n")
    with pytest.raises(Exception, match=rf"t\.csv, line {len(rows) + 4}: 2 fields and not the"):
        read(stream_table(path, FIELDS))
    path.write_text("id,text,mood\n" + "".join(rows) + 'x,y,"one ""\n')
    with pytest.raises(Exception, match=re.escape(f"line {len(rows) + 4}: malformed (")):
        read(stream_table(path, FIELDS))


def test_a_label_that_is_none_is_found_where_it_first_stands():
    cells = Column(np.array([0, 1, 0, 2, 2], np.int32), ["1", "2.5", "x"])
    labels = Labels("stars", KINDS["regression"])
    with pytest.raises(UnusableError, match="'x', and a regression needs a number") as caught:
        labels.of(cells)
    assert caught.value.index == 3
    assert list(labels.of(Column(cells.codes[:3], cells.names[:2]))) == [1.0, 2.5, 1.0]
