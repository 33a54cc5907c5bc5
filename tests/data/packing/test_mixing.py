"""Shares of two data sets by hand, and the texts that they bring into an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.data.packing.mixing import Mixture, apportion, rates

SIZES = np.array([900, 100])


@pytest.mark.parametrize(
    ("mixing", "temperature", "cap", "expected"),
    [
        ("size", 2.0, None, [0.9, 0.1]),
        ("size", 2.0, 300, [0.75, 0.25]),  # 300 and 100
        ("size", 2.0, 100, [0.5, 0.5]),
        ("temperature", 1.0, None, [0.9, 0.1]),
        ("temperature", 2.0, None, [0.75, 0.25]),  # 30 and 10, the roots
        ("temperature", 2.0, 400, [2 / 3, 1 / 3]),  # 20 and 10
        ("equal", 2.0, None, [0.5, 0.5]),
        ("equal", 2.0, 300, [0.5, 0.5]),
    ],
)
def test_shares_by_hand(mixing, temperature, cap, expected):
    np.testing.assert_allclose(rates(SIZES, mixing, temperature, cap), expected, rtol=1e-12)


def test_a_high_temperature_is_nearly_equal():
    np.testing.assert_allclose(rates(SIZES, "temperature", 1e9), [0.5, 0.5], rtol=1e-8)


@pytest.mark.parametrize(
    ("shares", "places", "expected"),
    [
        ([0.75, 0.25], 10, [8, 2]),  # quotas 7.5 and 2.5: the first of equal remainders
        ([0.7, 0.3], 9, [6, 3]),  # 6.3 and 2.7
        ([0.999, 0.001], 100, [99, 1]),  # 99.9 and 0.1 would be 100 and 0
        ([1.0], 7, [7]),
        ([0.5, 0.5], 2, [1, 1]),
    ],
)
def test_places_by_hand(shares, places, expected):
    assert apportion(np.array(shares), places).tolist() == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=3))
def test_shares_by_size_are_the_sizes(sizes):
    counts = apportion(rates(np.array(sizes), "size"), sum(sizes))
    assert counts.tolist() == sizes


def test_a_data_set_whose_places_are_its_texts_is_met_whole():
    lengths = np.array([5, 3, 9, 4, 4])
    mixture = Mixture(lengths, np.array([0, 0, 1, 1, 1]), {0: 2, 1: 3})
    np.testing.assert_array_equal(mixture.lengths, lengths)
    for epoch in range(4):
        np.testing.assert_array_equal(mixture.texts(7, epoch), np.arange(5))


def test_strata_by_hand():
    # By length 9 8 6 5 4 2; two places: the three longest and the three shortest.
    lengths = np.array([4, 9, 2, 8, 5, 6])
    mixture = Mixture(lengths, np.zeros(6, int), {0: 2})
    assert mixture.lengths.tolist() == [9, 5]
    found = np.array([mixture.texts(0, epoch) for epoch in range(6)])
    # Three epochs go once round a stratum.
    for place, texts in enumerate(([1, 3, 5], [0, 2, 4])):
        for turn in (found[:3, place], found[3:, place]):
            assert sorted(turn.tolist()) == texts


def test_strata_that_the_texts_do_not_divide_into_by_hand():
    # Five texts by length, three places: offsets 0 ... 4, texts floor((5 k + u) / 3).
    lengths = np.array([50, 40, 30, 20, 10])
    mixture = Mixture(lengths, np.zeros(5, int), {0: 3})
    assert mixture.lengths.tolist() == [50, 40, 20]
    found = np.array([mixture.texts(0, epoch) for epoch in range(5)])
    times = [np.bincount(found[:, place], minlength=5).tolist() for place in range(3)]
    assert times == [[3, 2, 0, 0, 0], [0, 1, 3, 1, 0], [0, 0, 0, 2, 3]]


def test_more_places_than_texts():
    lengths = np.array([7, 3, 5])
    mixture = Mixture(lengths, np.zeros(3, int), {0: 7})
    # Each text twice at its own length, and one place for any of them.
    assert mixture.lengths.tolist() == [7, 3, 5, 7, 3, 5, 7]
    found = [mixture.texts(1, epoch) for epoch in range(3)]
    assert all(texts[:6].tolist() == [0, 1, 2, 0, 1, 2] for texts in found)
    assert sorted(int(texts[6]) for texts in found) == [0, 1, 2]


cases = st.tuples(
    st.lists(st.integers(3, 60), min_size=1, max_size=12),
    st.lists(st.integers(3, 60), min_size=1, max_size=12),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases)
def test_every_text_of_a_data_set_is_met_equally_often_and_fits_its_place(case):
    first, second, *counts, seed = case
    lengths = np.array(first + second)
    sources = np.repeat([0, 1], [len(first), len(second)])
    mixture = Mixture(lengths, sources, dict(enumerate(counts)))
    assert len(mixture.lengths) == sum(counts)
    for source, (own, count) in enumerate(zip((first, second), counts, strict=True)):
        met = np.zeros(len(lengths), int)
        # Two cycles of as many epochs as it has texts.
        for epoch in range(2 * len(own)):
            texts = mixture.texts(seed, epoch)
            assert (lengths[texts] <= mixture.lengths).all()
            assert np.bincount(sources[texts], minlength=2).tolist() == counts
            met += np.bincount(texts, minlength=len(lengths))
        assert set(met[sources == source]) == {2 * count}


def test_the_texts_depend_on_the_seed_and_the_epoch_alone():
    lengths = np.arange(40) % 11
    mixtures = [Mixture(lengths, np.arange(40) // 25, {0: 10, 1: 30}) for _ in range(2)]
    forwards = [mixtures[0].texts(3, epoch).tolist() for epoch in range(20)]
    backwards = [mixtures[1].texts(3, epoch).tolist() for epoch in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert len({tuple(texts) for texts in forwards}) == 20
    assert mixtures[0].texts(4, 0).tolist() != forwards[0]


def test_places_are_hardly_longer_than_their_texts():
    draw = np.random.default_rng(0)
    lengths = np.sort(draw.integers(5, 100, 1000))
    mixture = Mixture(lengths, np.zeros(1000, int), {0: 100})
    mean = np.mean([lengths[mixture.texts(0, epoch)].mean() for epoch in range(10)])
    assert mixture.lengths.mean() / mean < 1.02
