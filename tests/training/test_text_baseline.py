import numpy as np
import pytest

from mtl_jax.data.examples import Examples
from mtl_jax.training.text_baseline import in_words, shortfalls, text_baseline

CLASSES = {"classifier": ("film", "phone"), "sentiment": ("bad", "fine", "good")}


def examples(texts, classifier, sentiment):
    labels = {
        "classifier": np.array(classifier, np.int32),
        "sentiment": np.array(sentiment, np.int32),
    }
    return Examples(texts=texts, labels=labels, groups=None)


def test_words_that_tell_the_classes_are_found():
    texts = ["a good film", "a bad film", "a good phone", "a bad phone"] * 5
    known = examples(texts, [0, 0, 1, 1] * 5, [2, 0, 2, 0] * 5)
    asked = examples(["what a bad phone", "good film"], [1, 0], [0, 2])
    metrics = text_baseline(known, asked, CLASSES)
    assert metrics["classifier"]["accuracy"] == metrics["sentiment"]["accuracy"] == 1.0


def test_labels_that_are_missing_teach_nothing():
    texts = ["good", "bad", "good", "bad", "good"]
    known = examples(texts, [-1] * 5, [2, 0, 2, 0, -1])
    metrics = text_baseline(known, examples(["good", "bad"], [-1, -1], [2, 0]), CLASSES)
    assert metrics["classifier"]["examples"] == 0
    assert metrics["sentiment"]["accuracy"] == 1.0


@pytest.mark.parametrize("texts", [["...", "!"], ["", ""], ["a", "b"]])
def test_texts_without_words_are_given_one_class(texts):
    known = examples(texts, [1, 0], [1, 1])
    metrics = text_baseline(known, known, CLASSES)
    assert metrics["classifier"]["accuracy"] == 0.5
    assert metrics["sentiment"]["accuracy"] == 1.0


def test_of_many_texts_some_suffice(monkeypatch):
    known = examples(["good one", "bad one"] * 30, [0, 1] * 30, [2, 0] * 30)
    monkeypatch.setattr("mtl_jax.training.text_baseline._MOST_TEXTS", 9)
    metrics = text_baseline(known, examples(["bad"], [1], [0]), CLASSES)
    assert metrics["sentiment"]["accuracy"] == 1.0


def test_what_a_run_has_not_learned_is_told():
    def scores(classifier, sentiment):
        both = {"classifier": classifier, "sentiment": sentiment}
        return {
            task: {"accuracy": 0.5, "macro_f1": f1, "examples": 0 if f1 is None else 9}
            for task, f1 in both.items()
        }

    (line,) = shortfalls(scores(0.098, 0.4), scores(0.65, 0.4))
    assert line.startswith("warning: classifier: macro-F1 0.098 on validation, where TF-IDF with")
    assert "reaches 0.650: try other learning rates, more epochs" in line
    assert shortfalls(scores(None, 0.4), scores(None, 0.3)) == []
    assert in_words(scores(None, 0.3)) == (
        "for comparison: TF-IDF with logistic regression reaches sentiment accuracy 0.500, "
        "macro-F1 0.300 on validation"
    )
