"""Warnings that a reader of a report needs before any number."""

from typing import Any

import numpy as np

from mtl_jax.studies.stats.doubts import doubts
from mtl_jax.studies.stats.measured import Measured
from tests.synthetic_study import line, metrics


def lines(**more: Any) -> list[dict[str, Any]]:
    return [
        line(arm, seed, score, 10) | {"curve": [], **more}
        for arm, score in (("top_1", 0.7), ("none_frozen", 0.71))
        for seed in range(3)
    ]


def test_of_what_is_clear_nothing_is_said():
    assert doubts(lines()) == []
    assert doubts([]) == []


def test_arms_that_do_not_reach_a_linear_model():
    def baseline(kind: str, *scores: float) -> list[dict[str, Any]]:
        return [{"baseline": kind, "test": metrics(score)} for score in scores]

    # Of the best arm the test score is 0.71.
    assert doubts(lines(), [*baseline("tf_idf", 0.8, 0.62), *baseline("logistic_probe", 0.7)]) == []
    (found,) = doubts(lines(), baseline("tf_idf", 0.8, 0.64))
    assert found == (
        "no arm reaches what a linear model of words (TF-IDF) does on test, 0.720: the best has "
        "0.710; train longer, try other learning rates (--tune), or look at the data"
    )
    # What needs no training of the backbone is better than all that was trained.
    (found,) = doubts(lines(), [*baseline("tf_idf", 0.8), *baseline("logistic_probe", 0.9)])
    assert found.startswith(
        "no arm reaches what a linear model on the vectors of the frozen backbone does on test, "
        "0.900: the best has 0.710; train longer"
    )
    of_setting = [{**line, "setting": {"size": 64}} for line in lines()]
    assert doubts(of_setting, baseline("tf_idf", 0.8)) == []


def test_arms_of_few_steps_have_hardly_been_trained():
    (found,) = doubts(lines(step=9))
    assert found == (
        "fewer than 10 steps hardly train anything: `top_1` for 9 steps, `none_frozen` for 9 "
        "steps; train longer (--epochs)"
    )
    assert doubts(lines(step=10)) == []


def with_texts(results: list[dict[str, Any]], each: float) -> list[dict[str, Any]]:
    """The same, where each of 100 validation texts contributes so much to the scores of top_1."""
    for result in results:
        size = each if result["arm"] == "top_1" else 0.0
        for of_task in result["validation"].values():
            part = np.tile([size, -size], 50)
            of_task["macro_f1"] = Measured(of_task["macro_f1"], lambda part=part: {"v": part})
    return results


def test_a_validation_split_whose_errors_are_above_the_differences_is_too_small():
    # Twice the error, 2 * 0.0008 * sqrt(100), is above the difference of 0.01.
    (found,) = doubts(with_texts(lines(), 0.0008))
    assert found == (
        "validation is too small to choose an arm on: its texts leave a standard error of 0.008 in "
        "a difference from the best, and half of the differences are below 0.010; validate on more "
        "texts, or choose by cost"
    )
    assert doubts(with_texts(lines(), 0.0004)) == []


def test_classes_that_are_never_predicted():
    results = lines(untrained_heads=[])
    for result in results:
        of_class = {"support": 25, "predicted": 3}
        result["test"]["sentiment"]["per_class"] = {"neutral": of_class, "none": {"support": 0}}
    assert doubts(results) == []
    for result in results[:2]:
        result["test"]["sentiment"]["per_class"]["neutral"] = {"support": 25, "predicted": 0}
    (found,) = doubts(results)
    assert found.startswith(
        "`top_1` never predicts 1 sentiment class that test texts have, 'neutral' (25 texts, with "
        "2 of 3 seeds): train longer"
    )
    results[2]["test"]["sentiment"]["per_class"]["neutral"] = {"support": 25, "predicted": 0}
    assert "'neutral' (25 texts, with every seed)" in doubts(results)[0]
    # Of one arm and task there is one sentence, however many classes it misses, and of one seed
    # nothing is counted.
    of_few = {f"class {place}": {"support": 1, "predicted": 0} for place in range(8)}
    results[0]["test"]["sentiment"]["per_class"] = of_few
    (found,) = doubts(results[:1])
    assert "never predicts 8 sentiment classes that test texts have, 'class 0' (1 text)" in found
    assert "'class 4' (1 text) and 3 more: train longer" in found
    # Of a head that never trained nothing else is to be expected.
    assert doubts([{**each, "untrained_heads": ["sentiment"]} for each in results]) == []


def curve(*scores: float) -> list[dict[str, Any]]:
    return [{"validation": {"sentiment": {"macro_f1": score}}} for score in scores]


def test_an_arm_that_was_still_improving():
    results = lines()
    for result, ends in zip(results, ((0.6, 0.63), (0.6, 0.61), (0.65, 0.64)), strict=False):
        result["curve"] = curve(0.5, *ends)
    (found,) = doubts(results)
    assert found == (
        "`top_1` was still improving when it ended: in 2 of 3 runs the last measurement is the "
        "best, and on average it is 0.010 above the one before; train longer (--epochs)"
    )
    results[1]["curve"] = curve(0.5, 0.61, 0.61 - 0.001)
    assert doubts(results) == []


def test_a_rate_at_the_edge_of_what_was_tried():
    tuned = {"chosen": {"head_learning_rate": 0.1, "epochs": 9}, "at_edge": ["head_learning_rate"]}
    found, other = doubts(lines(tuned=tuned))
    assert found == (
        "`top_1` was tuned to a head_learning_rate at the edge of what was tried, 0.1: one beyond "
        "may be better"
    )
    assert other.startswith("`none_frozen`")
    found, _ = doubts(lines(tuned={**tuned, "at_edge": [], "longest": True}))
    assert found.startswith("`top_1` was tuned to the longest training that was tried")
    assert doubts(lines(tuned={**tuned, "at_edge": [], "longest": False})) == []


def test_few_trials_are_told_once():
    tuned = {"chosen": {"epochs": 9}, "at_edge": [], "longest": False}
    (told,) = doubts(lines(tuned={**tuned, "trials": 2}))
    assert told.startswith("`top_1` and `none_frozen` were tuned with fewer than 3 trials, too few")
    assert doubts(lines(tuned={**tuned, "trials": 3})) == []
