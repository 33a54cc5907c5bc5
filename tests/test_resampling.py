import itertools

import numpy as np
import pytest
import scipy.stats

from experiments.resampling import (
    bootstrap_limits,
    expected_best,
    seeds_needed,
    sign_flip_p,
    smallest_p,
)


def test_bootstrap_of_few_values_is_their_range():
    # Far enough out that only a resample of one value, 1 in 27 or 1 in 256, lies there.
    assert bootstrap_limits([0.7, 0.9, 0.8]) == pytest.approx((0.7, 0.9))
    assert bootstrap_limits([0.7, 0.9, 0.8, 0.1]) == pytest.approx((0.1, 0.9))
    assert bootstrap_limits([0.7, 0.9]) is None
    assert bootstrap_limits([]) is None


def test_bootstrap_of_five_by_hand():
    # t_4 = 2.776, times sqrt(5/4) = 3.104, whose normal tail is 0.00096. Of the 5^5 = 3125
    # resamples 1 has the sum 0 and 5 the sum 1: that tail ends among the sums of 1.
    assert bootstrap_limits([0, 1, 2, 3, 4]) == pytest.approx((0.2, 3.8))


def test_bootstrap_of_many_nears_the_t_interval():
    values = scipy.stats.norm.ppf((np.arange(30) + 0.5) / 30)
    expected = scipy.stats.t.interval(0.9, 29, values.mean(), scipy.stats.sem(values))
    found = bootstrap_limits(values.tolist(), 0.9)
    assert found == pytest.approx(expected, abs=0.01)
    assert bootstrap_limits(values.tolist(), 0.9) == found


def test_bootstrap_without_spread():
    assert bootstrap_limits([0.1, 0.1, 0.1]) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [
        ([1.0, 2.0, 3.0, 4.0], 2 / 16),
        ([-1.0, -2.0, -3.0, -4.0], 2 / 16),
        # Of ±3 ±2 ±1, the sums 6, 4, -4 and -6 are as far from 0 as 3 + 2 - 1.
        ([3.0, 2.0, -1.0], 4 / 8),
        ([0.0, 0.0, 0.0], 1.0),
        ([1.0, -1.0], 1.0),
        ([0.2], 1.0),
    ],
)
def test_sign_flips_by_hand(differences: list[float], p_value: float):
    assert sign_flip_p(differences) == p_value


def test_sign_flips_of_nothing():
    assert sign_flip_p([]) is None


def test_sign_flips_of_many_seeds_are_drawn_and_repeat():
    differences = [1.0 + 0.01 * i for i in range(20)]
    p_value = sign_flip_p(differences)
    # No drawn pattern of 2^20 should reach the one found: 2 (0 + 1) / (9999 + 1).
    assert p_value == pytest.approx(2e-4)
    assert sign_flip_p(differences) == p_value


@pytest.mark.parametrize("seeds", [1, 2, 3, 6, 8])
def test_smallest_p_is_that_of_one_sign(seeds: int):
    assert smallest_p(seeds) == sign_flip_p([0.5 + 0.1 * i for i in range(seeds)])


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 6), (2, 7), (3, 7), (4, 8), (6, 8), (7, 9)])
def test_seeds_needed(comparisons: int, seeds: int):
    assert seeds_needed(comparisons, 0.05) == seeds
    assert comparisons * smallest_p(seeds) <= 0.05 < comparisons * smallest_p(seeds - 1)


def test_expected_best_by_hand():
    # Ascending 0.1, 0.3, 0.5; with two draws the best is the i-th in 1, 3 and 5 of 9 cases,
    # with three in 1, 7 and 19 of 27.
    expected = [0.9 / 3, (0.1 + 3 * 0.3 + 5 * 0.5) / 9, (0.1 + 7 * 0.3 + 19 * 0.5) / 27]
    assert expected_best([0.3, 0.5, 0.1]) == pytest.approx(expected)


def test_expected_best_equals_every_draw():
    scores = [0.2, 0.9, 0.4, 0.4]
    for n, found in enumerate(expected_best(scores), start=1):
        best = [max(draw) for draw in itertools.product(scores, repeat=n)]
        assert found == pytest.approx(sum(best) / len(best))


def test_expected_best_of_nothing_and_of_one():
    assert expected_best([]).shape == (0,)
    assert expected_best([0.4]).tolist() == [0.4]
