"""What is kept of rows that are read once, and which are set aside."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax.config.tasks import Kind
from mtl_jax.data.columns import restored
from mtl_jax.data.kinds import KINDS
from mtl_jax.data.pairs import Pair
from mtl_jax.data.sources.base import Rows, Stream
from mtl_jax.data.table import EMPTY, Places, hashes_of, read_table
from mtl_jax.data.texts import KeepAll

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def opened(texts, labels=None, places=None, block=3) -> Any:
    """What opens a source of these rows."""
    names: Any = ["up"] * len(texts) if labels is None else labels
    places = range(1, len(texts) + 1) if places is None else places

    def rows():
        for i in range(0, len(texts), block):
            some = slice(i, i + block)
            yield Rows(texts[some], {"mood": names[some]}, places[some])

    return lambda: Stream(rows(), "line {}".format, ["a note"])


def table(texts, *, set_aside=False, kind: Kind = "single_label", **rows) -> Any:
    keepers = lambda: (KeepAll(), KeepAll())  # noqa: E731
    kinds = {"mood": KINDS[kind]}
    return read_table(opened(texts, **rows), kinds, keepers, set_aside=set_aside)


def digest(text):
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


@given(st.lists(TEXTS))
def test_hashes_are_of_the_text_without_the_space_around_it(texts):
    expected = [digest(text.strip()) >> 192 for text in texts]
    assert hashes_of(texts).tolist() == expected
    assert table(texts).hashes.tolist() == expected
    assert table(texts, set_aside=True).hashes.tolist() == expected
    assert hashes_of([" \n"]).tolist() == [EMPTY]


@given(st.lists(TEXTS, min_size=2))
def test_a_tenth_is_set_aside_by_the_digest(texts):
    found = table(texts, set_aside=True)
    chosen = {text for text in texts if digest(text) % 10 == 0}
    if len(set(texts)) > 1 and (not chosen or chosen == set(texts)):
        chosen = {min(texts, key=digest)}
    if len(set(texts)) > 1:
        assert found.aside.tolist() == [text in chosen for text in texts]
    stays = [text for text, aside in zip(texts, found.aside, strict=True) if not aside]
    aside = [text for text, aside in zip(texts, found.aside, strict=True) if aside]
    assert found.texts == (stays, aside)


@given(st.lists(st.sampled_from(["up", "down", None])))
def test_labels_are_those_that_were_read(labels):
    found = table([""] * len(labels), labels=labels)
    column = found.labels["mood"]
    assert [column.names[code] for code in column.codes] == labels
    assert column.names == [None, *dict.fromkeys(label for label in labels if label)]
    assert found.notes == ("a note",)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("multi_label", [("a", "b"), None, (), ("b",), ("a", "b")]),
        ("regression", [2.5, None, -1.0, 0.0, 2.5]),
    ],
)
def test_labels_of_every_kind_are_kept_and_stored(kind, labels):
    found = table([""] * 5, labels=labels, kind=kind).labels["mood"]
    array, names = found.stored()
    again = restored(array, json.loads(json.dumps(names)))
    for column in (found, again):
        assert list(column) == labels
        assert [column[i] for i in range(5)] == labels
        assert list(column[1:3]) == labels[1:3]


def test_pairs_that_lack_one_of_their_texts_are_counted_where_they_are():
    pairs = [("a", "b"), ("", "b"), ("a", " "), ("a", "b\nc"), ("", "")]
    found = table([Pair(*pair) for pair in pairs])
    assert found.halved.tolist() == [1, 2, 4]
    assert [(text.first, text.second) for text in found.texts[0]] == pairs
    assert found.hashes[4] == EMPTY
    assert table(["a", ""]).halved.tolist() == []


@given(st.lists(st.integers(1, 3), min_size=1))
def test_every_row_has_its_place(steps):
    places = np.cumsum(steps).tolist()
    found = table([""] * len(places), places=places)
    assert [found.place(i) for i in range(len(places))] == [f"line {place}" for place in places]


def test_of_rows_one_after_the_other_one_place_is_kept():
    found = table([""] * 1000, block=10).places
    assert (found.rows.tolist(), found.values.tolist()) == ([0], [1])
    assert Places(np.array([0, 5]), np.array([2, 9]))[7] == 11


@pytest.mark.parametrize("set_aside", [False, True])
def test_texts_with_nul_characters_are_counted_where_they_are(set_aside):
    texts = ["a", "b\0", "c", "\0", "e"]
    assert table(texts, set_aside=set_aside).odd.tolist() == [1, 3]
