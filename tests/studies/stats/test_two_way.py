"""Intervals over seeds and texts together: what they are of, and how often they are right."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from mtl_jax.studies.stats.intervals import holm
from mtl_jax.studies.stats.two_way import (
    Answers,
    estimate,
    macro_f1,
    mean_macro_f1,
    text_weights,
)

TEXTS, CLASSES, STUDIES = 160, 3, 600
WEIGHTS = text_weights(TEXTS, 200)


def answered(draw, seeds, arms=1, *, shared=0.0, own=0.0, effect=0.0):
    """What arms answer to the same texts: an answer is right where a latent number is above 0.

    Args:
        draw: A random generator.
        seeds: Of each arm, with an effect each.
        arms: How many.
        shared: Standard deviation of how hard a text is for all.
        own: The same for one arm.
        effect: What each arm but the first has more.
    """
    gold = draw.choice(CLASSES, TEXTS, p=(0.45, 0.35, 0.2))
    hard = draw.normal(0, shared, TEXTS)
    found = []
    for arm in range(arms):
        level = 0.6 + (effect if arm else 0) + draw.normal(0, 0.1, (seeds, 1))
        own_part = draw.normal(0, own, TEXTS)
        right = level + hard + own_part + draw.normal(0, 1, (seeds, TEXTS)) > 0
        wrong = (gold + draw.integers(1, CLASSES, (seeds, TEXTS))) % CLASSES
        found.append(Answers(gold, np.where(right, gold, wrong), CLASSES))
    return found


def estimated(answers, reference=None):
    scores = macro_f1(answers, WEIGHTS)
    if reference is not None:
        scores = scores - macro_f1(reference, WEIGHTS)
    found = estimate(scores, int(np.bincount(answers.gold).min()))
    assert found is not None
    return found


def test_scores_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    gold = draw.integers(-1, 4, 50)
    predicted = draw.integers(0, 4, (3, 50))
    # A class that neither has; one that is only predicted, by one seed.
    gold[gold == 3] = 2
    predicted[1:][predicted[1:] == 3] = 0
    answers, weights = Answers(gold, predicted, 5), text_weights(50, 7)
    scores = macro_f1(answers, weights)
    there = gold >= 0
    for row, of_texts in enumerate(weights):
        for seed in range(3):
            expected = f1_score(
                gold[there],
                predicted[seed, there],
                average="macro",
                sample_weight=of_texts[there],
                zero_division=0,  # pyright: ignore[reportArgumentType]
            )
            assert scores[row, seed] == pytest.approx(expected, abs=1e-12)
    both = mean_macro_f1([answers, answers], weights)
    np.testing.assert_allclose(both, scores, rtol=0, atol=1e-12)


def test_without_an_effect_of_texts_it_is_the_t_interval():
    """Where all texts weigh alike in each draw."""
    scores = np.tile([0.1, 0.3, 0.2, 0.5], (11, 1))
    found = estimate(scores, 40)
    assert found is not None
    expected: Any = scipy.stats.ttest_1samp(scores[0], 0.0)
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert found.limits() == pytest.approx((interval.low, interval.high))
    assert (found.freedom, found.over_texts) == (pytest.approx(3), 0)
    assert estimate(scores[:, :1], 40) is None


@pytest.mark.parametrize("shared", [0.0, 1.0])
@pytest.mark.parametrize("seeds", [4, 7, 10])
def test_95_percent_are_95_percent(seeds, shared):
    draw = np.random.default_rng(seeds)
    found = [estimated(*answered(draw, seeds, shared=shared)) for _ in range(STUDIES)]
    truth = np.mean([each.mean for each in found])
    low, high = np.transpose([each.limits() for each in found])
    assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.97


@pytest.mark.parametrize("own", [0.0, 0.7])
def test_where_nothing_differs_few_studies_say_that_something_does(own):
    """Also where each arm has texts of its own that are hard for it."""
    draw = np.random.default_rng(85)
    claims, of_seeds_alone = 0, 0
    for _ in range(STUDIES):
        arm, other = answered(draw, 8, 2, shared=0.7, own=own)
        found = estimated(arm, other)
        claims += found.p_value <= 0.05
        of_seeds_alone += abs(found.mean) > scipy.stats.t.ppf(0.975, 7) * found.over_seeds
    assert claims / STUDIES <= 0.06
    assert own == 0 or of_seeds_alone / STUDIES > 0.12


def test_an_effect_of_two_standard_deviations_is_found_among_twelve_comparisons():
    """Of a seed's difference, texts included; the other eleven arms do not differ."""
    draw = np.random.default_rng(2)
    spread = np.std(
        [
            macro_f1(arm, WEIGHTS[:1])[0, 0] - macro_f1(other, WEIGHTS[:1])[0, 0]
            for arm, other in (answered(draw, 1, 2, shared=0.7) for _ in range(400))
        ]
    )
    # Per unit of the latent number.
    better = answered(draw, 400, 2, shared=0.7, effect=0.4)
    slope = (macro_f1(better[1], WEIGHTS[:1]) - macro_f1(better[0], WEIGHTS[:1])).mean() / 0.4
    effect, seen = 2 * spread / slope, 0
    for _ in range(100):
        base, *alike = answered(draw, 8, 12, shared=0.7)
        others = [estimated(each, base).p_value for each in alike]
        base, arm = answered(draw, 8, 2, shared=0.7, effect=effect)
        corrected, *_ = holm([estimated(arm, base).p_value, *others])
        seen += corrected is not None and corrected <= 0.05
    assert seen / 100 >= 0.85
