"""Texts that are not all in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax.core.errors import UserError
from mtl_jax.data.pairs import Pair
from mtl_jax.data.texts import (
    KeepChosen,
    KeepSample,
    KeepStored,
    SomeTexts,
    choice_key,
    choose,
    joined,
    take,
)

WORDS = st.lists(st.sampled_from(["a", "b", "", "c\n", "é"]), max_size=40)


def given_to(keeper, texts, labelled=None, block=7):
    labelled = np.ones(len(texts), bool) if labelled is None else labelled
    for i in range(0, len(texts), block):
        keeper.add(texts[i : i + block], labelled[i : i + block])
    return keeper.texts()


@given(WORDS, st.integers(1, 10))
def test_what_a_limit_chooses_in_one_pass_is_what_it_chooses_of_all(texts, limit):
    labelled = np.array([text != "b" for text in texts], bool)
    found = given_to(KeepChosen(limit, labelled_only=True), texts, labelled)
    there = np.flatnonzero(labelled)
    expected = there if len(there) <= limit else choose(texts, there, limit, "{}\n".format)
    assert isinstance(found, SomeTexts)
    assert found.known.tolist() == expected.tolist()
    assert len(found) == len(texts)
    assert [found[i] for i in expected.tolist()] == [texts[i] for i in expected.tolist()]
    assert take(found, expected) == [texts[i] for i in expected.tolist()]


def test_the_choice_is_by_the_smallest_digest_over_many_blocks():
    texts = [f"text {i}" for i in range(30_000)]
    found = given_to(KeepChosen(20), texts, block=4096)
    order = sorted(range(30_000), key=lambda i: choice_key(f"{i}\n{texts[i]}"))
    assert isinstance(found, SomeTexts)
    assert found.known.tolist() == sorted(order[:20])


def test_a_sample_is_the_same_each_time_and_from_all_over():
    texts = [f"text {i}" for i in range(30_000)]
    one, other = (given_to(KeepSample(1000), texts, block=size) for size in (4096, 1000))
    assert isinstance(one, SomeTexts)
    assert isinstance(other, SomeTexts)
    assert one.known.tolist() == other.known.tolist()
    assert len(one.known) == 1000
    assert np.bincount(one.known // 10_000).min() > 280
    some = one.take(np.arange(15_000))
    assert isinstance(some, SomeTexts)
    assert some.known.tolist() == [i for i in one.known.tolist() if i < 15_000]


def test_stored_texts_are_read_by_index(tmp_path):
    texts = [f"text {i} é\n" for i in range(10_000)]
    stored = given_to(KeepStored(tmp_path / "texts"), texts, block=999)
    assert list(stored) == texts
    assert (stored[0], stored[-1], stored[3:5]) == (texts[0], texts[-1], texts[3:5])
    chosen = np.array([9_999, 0, 0, 512])
    some = take(stored, chosen)
    assert list(some) == [texts[i] for i in chosen]
    assert list(take(some, np.array([1, 3]))) == [texts[0], texts[512]]
    both = joined([["x"], stored])
    assert (both[0], both[1], len(both)) == ("x", texts[0], 10_001)
    assert list(both)[-1] == texts[-1]
    assert list(take(both, np.array([0, 5, 7]))) == ["x", texts[4], texts[6]]
    assert list(take(both, np.array([7, 0]))) == [texts[6], "x"]
    with pytest.raises(IndexError):
        stored[10_000]


def test_stored_pairs_are_pairs_again(tmp_path):
    pairs = [("a\nb", "c\né"), ("", ""), ("\0é", "x" * 300)]
    stored = given_to(KeepStored(tmp_path / "texts"), [Pair(*pair) for pair in pairs])
    for texts in (stored, take(stored, np.arange(3)), joined([stored])):
        found = [(text.first, text.second) for text in texts if isinstance(text, Pair)]
        assert found == pairs


def test_damage_that_comes_while_texts_are_read_is_told(tmp_path):
    texts = [f"text {i}" for i in range(10_000)]
    stored = given_to(KeepStored(tmp_path / "texts"), texts)
    contents = bytearray((tmp_path / "texts").read_bytes())
    contents[200:400] = b"\xff" * 200
    (tmp_path / "texts").write_bytes(contents)
    with pytest.raises(UserError, match=r"/texts is damaged \(.*\): delete .*, it is recreated"):
        list(stored)
