from typing import Any

import pytest
import scipy.stats

from mtl_jax.studies.stats.intervals import (
    Interval,
    holm,
    mean_interval,
    of_differences,
    paired_difference,
    t_p,
)


def test_mean_interval_by_hand():
    # Mean 2, standard deviation 1, t_{2} at 97.5 % = 4.302653: 2 ± 4.302653 / sqrt(3).
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval is not None
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(2.484138, abs=1e-6)
    assert interval.low == pytest.approx(-0.484138, abs=1e-6)
    assert interval.n == 3


def test_mean_interval_equals_scipy():
    values = [0.71, 0.74, 0.69, 0.77, 0.72]
    interval = mean_interval(values)
    assert interval is not None
    expected = scipy.stats.t.interval(0.95, len(values) - 1, interval.mean, scipy.stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_one_seed_has_no_limits():
    interval = mean_interval([0.7])
    assert interval is not None
    assert interval == Interval(0.7, None, None, 1)
    assert interval.half_width is None
    assert interval.excludes(0) is None
    assert mean_interval([]) is None


def test_excludes():
    assert Interval(0.2, 0.1, 0.3, 3).excludes(0)
    assert not Interval(0.2, -0.1, 0.5, 3).excludes(0)


def test_within():
    assert Interval(0.0, -0.01, 0.01, 6).within(0.01)
    assert not Interval(0.0, -0.01, 0.011, 6).within(0.01)
    assert not Interval(0.0, -0.011, 0.0, 6).within(0.01)
    assert Interval(0.0, None, None, 1).within(0.01) is None


def test_paired_difference_by_hand():
    arm = {0: 0.70, 1: 0.73, 2: 0.69, 3: 0.75}
    reference = {0: 0.74, 1: 0.75, 2: 0.74, 3: 0.76}
    found = paired_difference(arm, reference)
    assert found is not None
    # -0.04, -0.02, -0.05, -0.01: four are too few for flips of signs, and t decides.
    # t = -0.03 / (0.018257 / 2) = -3.2863 of 3 degrees of freedom.
    assert found.p_value == found.t_p == pytest.approx(0.046205, abs=1e-6)
    assert found.by_seed == pytest.approx({0: -0.04, 1: -0.02, 2: -0.05, 3: -0.01})
    limits = (found.interval.low, found.interval.high)
    assert limits == pytest.approx((-0.03 - 0.029052, -0.03 + 0.029052), abs=1e-6)
    assert found.interval.mean == pytest.approx(-0.03)


def test_only_shared_seeds_are_paired():
    found = paired_difference({0: 0.5, 1: 0.7, 9: 99.0}, {1: 0.6, 0: 0.6, 5: -99.0})
    assert found is not None
    assert found.interval.n == 2
    assert found.interval.mean == pytest.approx(0.0)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_one_shared_seed_shows_nothing():
    found = paired_difference({0: 0.5, 1: 0.7}, {1: 0.6})
    assert found is not None
    assert found.p_value is None
    assert found.interval.low is None


@pytest.mark.parametrize(("shift", "p_value"), [(0.0, 1.0), (0.25, 2 / 64)])
def test_differences_without_spread(shift: float, p_value: float):
    reference = {0: 0.5, 1: 0.75, 2: 0.25, 3: 0.5, 4: 0.125, 5: 0.0}
    found = paired_difference({s: v + shift for s, v in reference.items()}, reference)
    assert found is not None
    assert found.p_value == p_value
    assert found.interval == Interval(shift, shift, shift, 6)


def test_differences_that_are_there_already():
    found = of_differences({3: 0.2, 5: 0.4})
    assert found is not None
    assert found.interval.mean == pytest.approx(0.3)
    assert (found.p_value, found.interval.low) == (None, None)
    assert of_differences({}) is None


def test_the_paired_t_test_is_scipys_from_three_seeds_on():
    one, other = [0.70, 0.73, 0.69, 0.75], [0.74, 0.75, 0.74, 0.76]
    differences = [a - b for a, b in zip(one, other, strict=True)]
    expected: Any = scipy.stats.ttest_rel(one, other)
    found = t_p(differences)
    assert found == pytest.approx(expected.pvalue)
    # With four seeds the sign-flip test can give no p below 0.125.
    assert found is not None
    assert found < 0.05
    assert t_p(differences[:2]) is None
    assert t_p([0.2, 0.2, 0.1 + 0.1]) == 0.0
    assert t_p([0.0, 0.0, 1e-17]) == 1.0


def test_holm_by_hand():
    # 4 x 0.01; 3 x 0.02 is 0.06; 2 x 0.03 is as much; 1 x 0.04 may not be less.
    assert holm([0.04, None, 0.01, 0.03, 0.02]) == pytest.approx([0.06, None, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
