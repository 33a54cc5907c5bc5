import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.metrics import mean_score, split_metrics

task_metrics = KINDS["single_label"].metrics

CLASSES = {"classifier": ("a", "b", "c"), "sentiment": ("negative", "positive")}


def test_accuracy_and_macro_f1_by_hand():
    #                   a  a  a  b  b  c  missing
    labels = np.array([0, 0, 0, 1, 1, 2, -1])
    guess = np.array([0, 0, 1, 1, 2, 1, 0])
    # a: precision 2/2, recall 2/3, F1 4/5; b: 1/3, 1/2, 2/5; c: 0/1, 0/1, 0.
    assert task_metrics(labels, guess, 3) == {
        "accuracy": pytest.approx(3 / 6),
        "macro_f1": pytest.approx((4 / 5 + 2 / 5 + 0) / 3),
        "examples": 6,
    }


def test_a_class_that_neither_occurs_nor_is_predicted_does_not_count():
    labels = np.array([0, 1, 0, 1, -1])
    for classes in (2, 4, 10):
        assert task_metrics(labels, labels, classes)["macro_f1"] == 1.0
    # One that is predicted for a labelled text does; 2 / 3, 2 / 3 and 0.
    guess = np.array([0, 1, 3, 1, 2])
    assert task_metrics(labels, guess, 10)["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 5)), min_size=1))
def test_macro_f1_is_that_of_scikit_learn(pairs):
    labels, guess = np.array(pairs).T
    there = labels >= 0
    if there.any():
        expected = f1_score(labels[there], guess[there], average="macro", zero_division=0)  # pyright: ignore
        assert task_metrics(labels, guess, 6)["macro_f1"] == expected


def test_a_guess_for_a_missing_label_does_not_count():
    labels, guess = np.array([1, -1, 0]), np.array([1, 2, 0])
    assert task_metrics(labels, guess, 2) == {"accuracy": 1.0, "macro_f1": 1.0, "examples": 2}


@pytest.mark.parametrize("size", [0, 3])
def test_without_labels_there_is_no_metric(size):
    missing, guess = np.full(size, -1), np.zeros(size, int)
    assert task_metrics(missing, guess, 3) == {"accuracy": None, "macro_f1": None, "examples": 0}


def test_weighted_f1_within_each_source_by_hand():
    labels = {
        "classifier": np.array([0, 1, 2, 0, 1, 2, 0]),
        "sentiment": np.array([0, 0, 0, 1, 1, -1, -1]),
    }
    guess = {
        "classifier": np.array([0, 1, 2, 0, 1, 2, 1]),
        "sentiment": np.array([0, 0, 1, 1, 0, 1, 1]),
    }
    groups = np.array(["tweet", "tweet", "tweet", "tweet", "review", "review", "unrated"])
    found = split_metrics(labels, guess, CLASSES, groups)
    # tweet: negative precision 2/2, recall 2/3, F1 4/5, three of them; positive 1/2, 1/1,
    # 2/3, one. review: one positive that was missed, though no negative was there to find.
    assert found["sentiment"]["weighted_f1_by_source"] == {
        "tweet": pytest.approx((3 * 4 / 5 + 1 * 2 / 3) / 4),
        "review": 0.0,
    }
    assert found["sentiment"]["accuracy"] == pytest.approx(3 / 5)
    # negative 2/3, 2/3, 2/3; positive 1/2, 1/2, 1/2.
    assert found["sentiment"]["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["sentiment"]["examples"] == 5
    # a 2/2, 2/3, 4/5; b 2/3, 2/2, 4/5; c 1.
    assert found["classifier"] == {
        "accuracy": pytest.approx(6 / 7),
        "macro_f1": pytest.approx((4 / 5 + 4 / 5 + 1) / 3),
        "examples": 7,
        "weighted_f1_by_source": {"tweet": 1.0, "review": 1.0, "unrated": 0.0},
    }
    assert mean_score(found) == pytest.approx((2.6 / 3 + 3.5 / 6) / 2)


def test_without_groups_there_is_no_figure_by_source():
    labels = {"classifier": np.array([0, 1]), "sentiment": np.array([-1, -1])}
    found = split_metrics(labels, labels, CLASSES, None)
    assert found["sentiment"] == {
        "accuracy": None,
        "macro_f1": None,
        "examples": 0,
        "weighted_f1_by_source": {},
    }
    # A task without labels has no part in what checkpoints are chosen by.
    assert mean_score(found) == found["classifier"]["macro_f1"] == 1.0


def test_no_label_of_any_task_chooses_nothing():
    missing = {task: np.array([-1]) for task in CLASSES}
    assert mean_score(split_metrics(missing, missing, CLASSES, None)) == 0.0
