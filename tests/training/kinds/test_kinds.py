"""The kinds of tasks: losses by hand, metrics of scikit-learn, and scores of counts alike."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn import metrics as sk
from sklearn.utils.class_weight import compute_class_weight

from mtl_jax.config.tasks import Task
from mtl_jax.data.kinds import has_label
from mtl_jax.training.kinds.multi_label import BinaryCrossEntropy
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.kinds.single_label import CrossEntropy
from mtl_jax.training.losses import masked_cross_entropy

DRAW = np.random.default_rng(0)
LOGITS = DRAW.normal(size=(40, 3)).astype(np.float32)
NUMBERS = DRAW.integers(-1, 3, 40).astype(np.int32)
MARKS = DRAW.integers(0, 2, (40, 3)).astype(np.int8)
MARKS[::7] = -1
VALUES = DRAW.normal(size=40).astype(np.float32)
VALUES[::5] = np.nan
LABELS = {"single_label": NUMBERS, "multi_label": MARKS, "regression": VALUES}


def logits_of(kind):
    return LOGITS[:, :1] if kind == "regression" else LOGITS


def test_the_loss_of_several_labels_is_the_mean_over_classes():
    total, count = KINDS["multi_label"].loss(jnp.asarray(LOGITS), jnp.asarray(MARKS))
    there = MARKS[:, 0] >= 0
    p = scipy.special.expit(LOGITS[there].astype(np.float64))
    expected = -(np.log(p) * MARKS[there] + np.log(1 - p) * (1 - MARKS[there])).mean(-1)
    assert float(count) == there.sum()
    assert float(total) == pytest.approx(expected.sum(), rel=1e-6)


def test_the_loss_of_a_regression_is_the_squared_error():
    total, count = KINDS["regression"].loss(jnp.asarray(LOGITS[:, :1]), jnp.asarray(VALUES))
    there = ~np.isnan(VALUES)
    assert float(count) == there.sum()
    expected = ((LOGITS[there, 0] - VALUES[there]) ** 2).sum()
    assert float(total) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("kind", LABELS)
def test_a_missing_label_has_no_loss_and_no_gradient(kind):
    labels = LABELS[kind]

    def loss(logits):
        return KINDS[kind].loss(logits, jnp.asarray(labels))[0]

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(logits_of(kind))))
    assert np.isfinite(gradient).all()
    assert not gradient[~has_label(labels)].any()
    assert gradient[has_label(labels)].any(-1).all()


def test_smoothed_and_weighted_losses_by_hand():
    weights = (0.5, 2.0, 1.0)
    there = NUMBERS >= 0
    log = scipy.special.log_softmax(LOGITS[there].astype(np.float64), axis=-1)
    targets = 0.9 * np.eye(3)[NUMBERS[there]] + 0.1 / 3
    total, count = CrossEntropy(weights, 0.1)(jnp.asarray(LOGITS), jnp.asarray(NUMBERS))
    assert float(total) == pytest.approx(-(targets * log * weights).sum(), rel=1e-6)
    plain = CrossEntropy()(jnp.asarray(LOGITS), jnp.asarray(NUMBERS))
    usual = masked_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(NUMBERS))
    np.testing.assert_allclose(plain, usual, rtol=1e-6)
    assert float(count) == there.sum()

    marked = MARKS[MARKS[:, 0] >= 0]
    logits = LOGITS[MARKS[:, 0] >= 0].astype(np.float64)
    smooth = 0.9 * marked + 0.05
    log = scipy.special.log_expit
    each = -(np.array(weights) * smooth * log(logits) + (1 - smooth) * log(-logits))
    total, _ = BinaryCrossEntropy(weights, 0.1)(jnp.asarray(LOGITS), jnp.asarray(MARKS))
    assert float(total) == pytest.approx(each.mean(-1).sum(), rel=1e-6)
    total, _ = BinaryCrossEntropy((1.0, 1.0, 1.0))(jnp.asarray(LOGITS), jnp.asarray(MARKS))
    usual, _ = KINDS["multi_label"].loss(jnp.asarray(LOGITS), jnp.asarray(MARKS))
    assert float(total) == pytest.approx(float(usual), rel=1e-6)


def test_balanced_weights_are_those_of_scikit_learn():
    there = NUMBERS[NUMBERS >= 0]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=there)
    np.testing.assert_allclose(KINDS["single_label"].balanced(NUMBERS, 3), expected)
    assert expected[there].mean() == pytest.approx(1)
    # A class without a label is no infinite weight.
    np.testing.assert_allclose(KINDS["single_label"].balanced(NUMBERS, 4)[:3], expected)
    marks = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [-1, -1, -1]], np.int8)
    assert KINDS["multi_label"].balanced(marks, 3).tolist() == [2.0, 1.0, 1.0]


def test_metrics_of_several_labels_are_those_of_scikit_learn():
    kind, there = KINDS["multi_label"], MARKS[:, 0] >= 0
    predicted = kind.predicted(LOGITS)
    true, guess = MARKS[there], predicted[there]
    assert kind.metrics(MARKS, predicted, 3) == {
        "subset_accuracy": sk.accuracy_score(true, guess),
        "micro_f1": sk.f1_score(true, guess, average="micro"),
        "macro_f1": sk.f1_score(true, guess, average="macro"),
        "hamming_loss": sk.hamming_loss(true, guess),
        "examples": there.sum(),
    }


def test_metrics_of_few_or_no_classes():
    kind = KINDS["multi_label"]
    one, none = np.array([[1], [0], [1]], np.int8), np.zeros((2, 3), np.int8)
    assert kind.metrics(one, one, 1)["macro_f1"] == 1.0
    assert kind.metrics(none, none, 3)["macro_f1"] == 1.0
    missing = np.full((2, 3), -1, np.int8)
    found = kind.metrics(missing, none, 3)
    assert found.pop("examples") == 0
    assert set(found.values()) == {None}


def test_metrics_of_a_regression_are_those_of_scikit_learn_and_scipy():
    kind, there = KINDS["regression"], ~np.isnan(VALUES)
    predicted = kind.predicted(LOGITS[:, :1], mean=3.0, deviation=2.0)
    np.testing.assert_allclose(predicted, 3 + 2 * LOGITS[:, 0].astype(float))
    labels = 3 + 2 * VALUES.astype(float)
    true, guess = labels[there], predicted[there]
    assert kind.metrics(labels, predicted, 0) == {
        "r2": pytest.approx(sk.r2_score(true, guess)),
        "rmse": pytest.approx(sk.root_mean_squared_error(true, guess)),
        "mae": pytest.approx(sk.mean_absolute_error(true, guess)),
        "pearson": pytest.approx(np.corrcoef(true, guess)[0, 1]),
        "spearman": pytest.approx(np.corrcoef(*map(scipy.stats.rankdata, (true, guess)))[0, 1]),
        "examples": there.sum(),
    }


@pytest.mark.parametrize(
    ("labels", "predicted", "defined"),
    [
        ([np.nan, np.nan], [1.0, 2.0], set()),
        ([1.0], [1.5], {"rmse", "mae"}),
        ([2.0, 2.0], [1.0, 2.0], {"rmse", "mae"}),
        ([1.0, 2.0], [1.5, 1.5], {"rmse", "mae", "r2"}),
        ([1.0, 2.0], [1.5, np.inf], set()),
        ([1.0, 2.0], [np.nan, 1.0], set()),
    ],
)
def test_what_is_not_defined_of_a_regression_is_none(labels, predicted, defined):
    found = KINDS["regression"].metrics(np.array(labels), np.array(predicted), 0)
    del found["examples"]
    assert {name for name, value in found.items() if value is not None} == defined


@pytest.mark.parametrize("kind", LABELS)
def test_scores_of_counts_and_of_draws_are_the_metric(kind):
    own: Any = KINDS[kind]
    labels, logits = LABELS[kind], logits_of(kind)
    expected = own.metrics(labels, own.predicted(logits), 3)[own.score]
    counts = own.counts(jnp.asarray(logits), jnp.asarray(labels))
    assert own.score_of_counts(np.asarray(counts)) == pytest.approx(expected, rel=1e-5)
    there, predicted = has_label(labels), own.predicted(logits)
    drawn = np.random.default_rng(1).integers(0, 4, (3, int(there.sum()))).astype(np.float32)
    weights = np.concatenate([np.ones((1, drawn.shape[1]), np.float32), drawn])
    found = own.resampled(labels[there], predicted[there], weights)
    assert found[0] == pytest.approx(expected, rel=1e-5)
    again = np.repeat(np.flatnonzero(there), drawn[1].astype(int))
    repeated = own.metrics(labels[again], predicted[again], 3)[own.score]
    assert found[2] == pytest.approx(repeated, rel=1e-5)
    # What is not finite is no score, and without labels there is none.
    broken = own.counts(jnp.asarray(logits).at[3].set(jnp.nan), jnp.asarray(labels))
    assert np.isnan(own.score_of_counts(np.asarray(broken)))
    blank = labels[~there][:2]
    assert own.score_of_counts(np.asarray(own.counts(logits[:2], jnp.asarray(blank)))) is None


@pytest.mark.parametrize("kind", LABELS)
def test_what_holds_predictions_is_how_far_they_are(kind):
    own, logits = KINDS[kind], logits_of(kind)
    now = logits + DRAW.normal(size=logits.shape).astype(np.float32)
    far = own.divergence(logits, now)
    assert far > 0.01
    assert own.divergence(logits, logits) == pytest.approx(0, abs=1e-9)
    assert own.divergence(logits[:0], now[:0]) == 0
    # A batch has zeros where there is no text.
    targets = np.zeros((50, own.targets(logits).shape[1]), np.float32)
    targets[:40] = own.targets(logits)
    padded = np.zeros((50, logits.shape[1]), np.float32)
    padded[:40] = now
    assert int(own.are_there(jnp.asarray(targets)).sum()) == 40
    held = own.hold(jnp.asarray(padded), jnp.asarray(targets))
    assert float(held) / 40 == pytest.approx(far, rel=1e-4)


def test_answers_are_labels_with_probabilities_and_values():
    logits = np.array([[2.0, -1.0, 0.0]], np.float32)
    tags = Task("tags", "multi_label", classes=("a", "b", "c"))
    (answer,) = KINDS["multi_label"].answers(logits, tags)
    assert answer["labels"] == ["a", "c"]
    assert answer["probabilities"] == {"a": 0.880797, "b": 0.268941, "c": 0.5}
    stars = Task("stars", "regression", mean=3.0, deviation=0.5)
    assert KINDS["regression"].answers(logits[:, :1], stars) == [{"value": 4.0}]


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_logits_of_probabilities_give_these_and_the_same_predictions(kind):
    draw, of = np.random.default_rng(0), KINDS[kind]
    shares = draw.dirichlet(np.ones(3), 40)
    # Nearer to the threshold than float32 can tell, and at both ends.
    shares[:3] = [[0.5, 0.5 - 1e-12, 1e-12], [0, 0.5 + 1e-12, 0.5 - 1e-12], [1, 0, 0]]
    found: Any = of.probabilities(of.logits(shares))
    np.testing.assert_allclose(found, shares, atol=1e-6)
    expected = shares.argmax(-1) if kind == "single_label" else shares >= 0.5
    np.testing.assert_array_equal(of.predicted(of.logits(shares)), expected)
    with pytest.raises(ValueError, match="no probabilities"):
        KINDS["regression"].logits(shares)
