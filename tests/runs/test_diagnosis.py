"""What predictions show, of a handful of texts whose figures can be worked out."""

import math

import numpy as np
import pytest

from mtl_jax.runs import calibration, diagnosis
from mtl_jax.runs.predictions import TaskPredictions

PROBABILITIES = [
    [0.8, 0.1, 0.1],
    [0.3, 0.6, 0.1],
    [0.2, 0.7, 0.1],
    [0.1, 0.9, 0.0],
    [0.55, 0.25, 0.2],
    [0.0, 0.0, 1.0],
]


def single(gold, probabilities, classes=("a", "b", "c")):
    values = np.array(probabilities)
    return TaskPredictions("single_label", classes, np.array(gold), values.argmax(-1), values)


def marks(gold, probabilities, classes):
    values = np.array(probabilities)
    predicted = (values >= 0.5).astype(np.int8)
    return TaskPredictions("multi_label", classes, np.array(gold, np.int8), predicted, values)


# The last text has no label.
FOUND = single([0, 0, 1, 1, 2, -1], PROBABILITIES)


def test_scores_and_confusions_of_classes():
    assert diagnosis.per_class(FOUND) == {
        "a": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2, "predicted": 2},
        "b": {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2, "predicted": 3},
        "c": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1, "predicted": 0},
    }
    assert diagnosis.confusion(FOUND).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    one = marks([[1], [1], [0], [-1]], [[0.9], [0.2], [0.6], [0.9]], ("x",))
    assert diagnosis.confusion(one).tolist() == [[[0, 1], [1, 1]]]


def test_the_surest_mistakes_come_first():
    found = [(each.place, each.label, each.predicted) for each in diagnosis.mistakes([FOUND], 9)]
    assert found == [(1, "a", "b"), (4, "c", "a")]
    assert [each.size for each in diagnosis.mistakes([FOUND], 1)] == [0.6]
    # Another seed has the second text right, and both together have: only the fifth is left.
    other = single(FOUND.gold, [[0.9, 0.1, 0.0]] * 2 + PROBABILITIES[2:])
    (left,) = diagnosis.mistakes([FOUND, other], 9)
    assert (left.place, left.size, left.runs) == (4, 0.55, 2)
    with pytest.raises(ValueError, match="other texts"):
        diagnosis.together([FOUND, single([1] * 6, PROBABILITIES)])


def test_mistakes_of_marks_and_values():
    found = marks([[1, 0], [0, 0]], [[0.1, 0.2], [0.3, 0.7]], ("x", "y"))
    mistakes = [(m.place, m.label, m.predicted, m.size) for m in diagnosis.mistakes([found], 9)]
    assert mistakes == [(0, "x", "not x", 0.9), (1, "none", "y", 0.7)]
    values = TaskPredictions(
        "regression", (), np.array([1.0, 2, np.nan, 4]), np.array([1.5, 2, 9, 3]), None
    )
    assert [(m.place, m.size) for m in diagnosis.mistakes([values], 2)] == [(3, -1.0), (0, 0.5)]
    residuals = diagnosis.residuals(values)
    assert residuals["mean"] == pytest.approx(-1 / 6)
    assert residuals["50 %"] == 0.0


def test_thresholds_are_those_of_the_best_f1():
    found = marks([[1, 0], [1, 0], [0, 0]], [[0.9, 0.9], [0.4, 0.1], [0.3, 0.1]], ("x", "never"))
    best = diagnosis.best_thresholds(found)
    assert best.tolist() == [0.4, 0.5]
    assert diagnosis.with_thresholds(found, best).predicted.tolist() == [[1, 1], [1, 0], [0, 0]]


def test_calibration_by_hand():
    # Sure of 0.55 and 0.6, in one bin, and wrong; 0.7, 0.8 and 0.9 are right.
    assert calibration.calibration_error(FOUND) == pytest.approx((1.15 + 0.3 + 0.2 + 0.1) / 5)
    first = calibration.reliability(*calibration.confidences(FOUND))[0]
    assert (first.count, first.accuracy, first.high) == (2, 0.0, pytest.approx(0.6))
    assert first.confidence == pytest.approx(0.575)


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_the_temperature_makes_confidence_what_is_right(kind):
    """Sure of 0.9 and right in three of four: log 9 / log 3 = 2 makes it 0.75."""
    right = [0, 0, 0, 1]
    if kind == "single_label":
        found = single(right, [[0.9, 0.1]] * 4, ("a", "b"))
    else:
        found = marks([[1], [1], [1], [0]], [[0.9]] * 4, ("x",))
    seen = calibration.calibrated(found, found)
    assert seen.temperature == pytest.approx(2.0, rel=1e-4)
    assert seen.ece == pytest.approx(0.15)
    assert seen.ece_with_temperature == pytest.approx(0.0, abs=1e-4)
    assert seen.log_loss == pytest.approx(-(3 * math.log(0.9) + math.log(0.1)) / 4)
    assert seen.log_loss_with_temperature == pytest.approx(
        -(3 * math.log(0.75) + math.log(0.25)) / 4
    )
    unlabelled = single([-1] * 4, [[0.9, 0.1]] * 4, ("a", "b"))
    assert calibration.calibrated(unlabelled, unlabelled) == calibration.Calibration(None, None)
