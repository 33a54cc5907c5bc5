"""Errors over seeds and texts together: what they are made of, and how often they are right."""

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from mtl_jax.studies.stats.intervals import covers_texts, mean_interval, paired_difference
from mtl_jax.studies.stats.measured import Measured, contributions
from mtl_jax.studies.stats.resampling import family_p
from mtl_jax.studies.stats.two_way import estimate, text_covariance
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.prediction_counts import (
    calibration_error_without_each,
    class_scores_without_each,
)
from tests.studies.stats.simulated import (
    REFERENCE,
    coverage,
    false_claims,
    power,
    qualities,
    study,
)

LEFT_OUT = {
    "single_label": ("accuracy", "macro_f1", "weighted_f1"),
    "multi_label": ("subset_accuracy", "hamming_loss", "micro_f1", "macro_f1", "weighted_f1"),
    "regression": ("r2", "rmse", "mae"),
}


def answered(kind: str) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    if kind == "regression":
        labels = draw.normal(size=30)
        return labels, labels + draw.normal(size=30)
    shape = (30, 3) if kind == "multi_label" else 30
    labels, other = draw.integers(0, 2 if kind == "multi_label" else 4, (2, *np.ravel(shape)))
    kept = draw.random(shape) < 0.6
    dtype = np.int8 if kind == "multi_label" else np.int32
    return labels.astype(dtype), np.where(kept, labels, other).astype(dtype)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_metric_without_a_text_is_that_of_the_others(name: Any):
    kind, (labels, predicted) = KINDS[name], answered(name)
    for metric in LEFT_OUT[name]:
        found = kind.left_out(metric, labels, predicted, 5)
        for text in range(len(labels)):
            rest = np.arange(len(labels)) != text
            if metric == "weighted_f1":
                expected = kind.weighted_f1(labels[rest], predicted[rest])
            else:
                expected = kind.metrics(labels[rest], predicted[rest], 5)[metric]
            assert found is not None
            assert found[text] == pytest.approx(expected, abs=1e-12)
    assert kind.left_out("spearman", labels, predicted, 5) is None


@pytest.mark.parametrize("name", ["single_label", "multi_label"])
def test_calibration_and_classes_without_a_text_are_those_of_the_others(name: Any):
    kind, (labels, predicted) = KINDS[name], answered(name)
    draw = np.random.default_rng(1).random((30, 4 if labels.ndim == 1 else 3)).astype(np.float32)
    sure = kind.confidences(labels, draw)
    assert sure is not None
    found = calibration_error_without_each(*sure)
    classes = [str(number) for number in range(draw.shape[1])]
    of_classes = [
        class_scores_without_each(
            *(x[:, k] > 0 if x.ndim == 2 else x == k for x in (labels, predicted))
        )
        for k in range(len(classes))
    ]
    for text in range(30):
        rest = np.arange(30) != text
        assert found[text] == pytest.approx(kind.calibration_error(labels[rest], draw[rest]))
        expected = kind.per_class(labels[rest], predicted[rest], classes)
        for each, of_class in zip(of_classes, expected.values(), strict=True):
            for score, values in each.items():
                assert values[text] == pytest.approx(of_class[score])


def test_contributions_give_the_variance_of_a_mean():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    left_out = (values.sum() - values) / 3
    # s² / n of the values: 12.667 / 4.
    assert (contributions(left_out) ** 2).sum() == pytest.approx(values.var(ddof=1) / 4)


def measured(value: float, **parts: list[float]) -> Measured:
    return Measured(value, lambda: {key: np.array(each) for key, each in parts.items()})


def test_sums_and_differences_know_their_texts_and_the_rest_is_plain():
    one, other = measured(0.5, test=[1, 2]), measured(0.3, test=[1, 0], train=[4])
    found: Any = (one - other + 1) / 2
    assert (float(found), type(one * other), type(abs(one))) == (0.6, float, float)
    assert (type(one - 0.1), type(0.1 - one), type(0 - one)) == (float, float, Measured)
    assert {key: each.tolist() for key, each in found.parts.items()} == {
        "test": [0, 1],
        "train": [-2],
    }
    mean: Any = sum([one, other]) / 2
    assert mean.parts["test"].tolist() == [1, 1]
    negative: Any = 1 - one
    assert (float(negative), negative.parts["test"].tolist()) == (0.5, [-1, -2])
    assert copy.deepcopy({"a": one})["a"].parts["test"].tolist() == [1, 2]
    assert (covers_texts([one, other]), covers_texts([one, 0.2]), covers_texts([])) == (
        *(True, False),
        False,
    )


def test_an_estimate_by_hand():
    """Two seeds of scores 0.4 and 0.6; each text contributes as much to both, or to one."""
    found = estimate([measured(0.4, test=[3, 4, 0]), measured(0.6, test=[3, 4, 2])])
    assert found is not None
    # s² / S = 0.02 / 2; v is of the mean [3, 4, 1]; w is (0 + 1 + 1) / 1 of the distances from it.
    assert found.over_seeds**2 == pytest.approx(0.01)
    assert found.over_texts == pytest.approx(math.sqrt(26))
    assert found.shared**2 == pytest.approx(26 - 2 / 2)
    assert found.error**2 == pytest.approx(0.01 + 25)
    # Σu⁴ / (Σu²)² - 1/N = 338 / 676 - 1/3 = 1/6.
    assert found.text_freedom == pytest.approx(12)
    # Of t with 1 and with 12 degrees of freedom, by their parts of the variance.
    t = [float(scipy.stats.t.isf(0.025, freedom)) for freedom in (1, 12)]
    assert found.quantile(0.05) == pytest.approx((0.01 * t[0] + 25 * t[1]) / 25.01)
    more = dataclasses.replace(found, seeds=6)
    # Satterthwaite's: 25.01² / (0.01² / 5 + 25² / 12).
    assert more.quantile(0.05) == pytest.approx(
        float(scipy.stats.t.isf(0.025, 25.01**2 / (0.01**2 / 5 + 25**2 / 12)))
    )
    found = dataclasses.replace(found, mean=3 * found.error)
    assert found.quantile(found.p_value) == pytest.approx(3)
    assert text_covariance([found, found]) == pytest.approx(np.full((2, 2), 25))


def test_texts_of_each_seed_alone_are_in_its_scatter_already():
    """As of training texts that each seed draws."""
    found = estimate([measured(0.4, a=[3, 4]), measured(0.6, b=[5, 12])])
    assert found is not None
    assert found.shared == pytest.approx(0)
    assert found.error == pytest.approx(found.over_seeds)


def test_without_texts_it_is_the_t_interval():
    scores = [0.1, 0.3, 0.2, 0.5]
    found, expected = estimate(scores), scipy.stats.ttest_1samp(scores, 0.0)
    assert found is not None
    known: Any = expected
    interval = known.confidence_interval()
    assert found.p_value == pytest.approx(known.pvalue)
    assert found.limits == pytest.approx((interval.low, interval.high))
    assert found.over_texts is None
    mixed = estimate([measured(0.1, test=[9.0, 9.0]), *scores[1:]])
    assert mixed is not None
    assert (mixed.error, mixed.over_texts) == (pytest.approx(found.error), None)
    assert estimate(scores[:1]) is None


def test_flips_are_wider_by_the_errors_of_shared_texts():
    """Eight seeds of like signs, which flips alone tell from nothing with 2 / 2^8."""
    seeds = {seed: 0.1 + 0.001 * seed for seed in range(8)}

    def with_texts(size: float) -> dict[int, float]:
        each = [size / 10, -size / 10] * 50
        return {seed: measured(value, test=each) for seed, value in seeds.items()}

    assert family_p([seeds]) == [2 / 2**8]
    (small,), (large,) = family_p([with_texts(0.01)]), family_p([with_texts(0.1)])
    assert small is not None
    assert large is not None
    assert small < 0.02
    # The mean, 0.1035, is about one standard error of texts.
    assert large == pytest.approx(2 * scipy.stats.norm.sf(1.035), abs=0.03)
    assert family_p([with_texts(0.1)]) == [large]


def test_a_step_down_family_leaves_the_largest_effect_no_less_than_alone():
    draw = np.random.default_rng(3)
    clear = dict(enumerate(0.5 + 0.1 * draw.random(8)))
    weak = dict(enumerate(0.1 + 0.1 * draw.normal(size=8)))
    (alone,), (first, second) = family_p([weak]), family_p([clear, weak])
    assert first == 2 / 2**8
    # What comes last in order is tested as if alone.
    assert second == alone


@pytest.mark.parametrize("hard", [0.0, 1.0])
@pytest.mark.parametrize("seeds", [4, 7, 10])
def test_95_percent_are_95_percent(seeds: int, hard: float):
    assert 0.93 <= coverage(1000, seeds, hard=hard) <= 0.97


@pytest.mark.parametrize(("seeds", "arms", "own"), [(8, 4, 0.0), (8, 4, 0.7), (4, 4, 0.7)])
def test_where_nothing_differs_few_studies_say_that_something_does(
    seeds: int, arms: int, own: float
):
    """Also where each arm has texts of its own that are hard for it."""
    assert false_claims(300, seeds, arms, hard=0.7, own=own) <= 0.06


def test_an_interval_over_seeds_alone_claims_too_much():
    """What the errors of texts are there for: texts that are hard for one arm."""
    draw, claims = np.random.default_rng(8), 0

    for _ in range(100):
        lines = study(draw, 8, 2, hard=0.7, own=1.5)
        one, other = (qualities(lines, arm, "test") for arm in ("arm_1", REFERENCE))
        found = paired_difference(
            {seed: float(value) for seed, value in one.items()},
            {seed: float(value) for seed, value in other.items()},
        )
        claims += found is not None and found.p_value is not None and found.p_value <= 0.05
    assert claims > 15


def test_an_effect_of_two_standard_deviations_is_found_among_twelve_comparisons():
    assert power(60, hard=0.7) >= 0.85


def test_a_mean_says_whether_it_covers_texts():
    plain, known = mean_interval([0.1, 0.2]), mean_interval([measured(0.1, t=[1.0, 0.0])] * 2)
    assert plain is not None
    assert known is not None
    assert (plain.over_texts, known.over_texts) == (False, True)
