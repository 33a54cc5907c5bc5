"""What difference a study can tell, before it starts and after."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from mtl_jax.studies.stats.measured import Measured
from mtl_jax.studies.stats.power import (
    after,
    after_text,
    before,
    detectable,
    differences,
    text_error,
)
from tests.synthetic_study import line


def test_the_error_of_texts_leans_on_the_rarest_class():
    # sqrt(0.1 / 150 + 0.1 / 145 + 0.1 / 25) / 3.
    found = text_error([(150, 145, 25)])
    assert found == pytest.approx(math.sqrt(0.1 / 150 + 0.1 / 145 + 0.1 / 25) / 3)
    # A mean of two tasks of as many texts.
    assert text_error([(150, 145, 25)] * 2) == pytest.approx(found / math.sqrt(2))
    assert text_error([(0, 0), ()]) == 0
    assert text_error([(5000, 4900, 1965)]) < 0.004


def test_a_detectable_difference_is_found_as_often_as_is_said():
    size = detectable(8, 0.02, 0.01, comparisons=3, chance=0.8)
    assert size is not None
    draw, seen = np.random.default_rng(0), 0
    for _ in range(2000):
        scores = size + draw.normal(0, 0.01) + draw.normal(0, 0.02, 8)
        between = scores.var(ddof=1) / 8
        error = math.sqrt(between + 0.01**2)
        freedom = error**4 / (between**2 / 7)
        seen += 2 * scipy.stats.t.sf(abs(scores.mean()) / error, freedom) <= 0.05 / 3
    assert seen / 2000 == pytest.approx(0.8, abs=0.04)
    assert detectable(2, 0.02, 0.01) is None
    assert detectable(3, 0.0, 0.0) == 0


def test_more_seeds_and_more_texts_tell_more():
    sizes: list[Any] = [detectable(n, 0.02, e) for n, e in ((4, 0.02), (8, 0.02), (8, 0.005))]
    assert sizes == sorted(sizes, reverse=True)


def test_before_a_study_what_it_can_tell_is_said():
    said = before(6, 5, {"sentiment": (150, 145, 25), "source": (80, 80, 80, 80)})
    assert said == (
        "with 6 seeds and 4 comparisons, a difference of 0.062 macro-F1 is detected with a "
        "probability of 85 %, if differences vary by 0.02 between seeds, and on 10 % of the test "
        "texts just one of two arms is right; the test texts alone leave a standard error of 0.015"
    )
    assert before(2, 5, {}) == (
        "this study cannot tell any difference between arms: a test needs 3 seeds and 2 trained "
        "arms, and there are 2 seeds and 5 trained arms"
    )


OWN = {"one": 0.6, "other": 0.7, "control": 0.1}


def piloted() -> list[dict[str, Any]]:
    scatter = (0.01, -0.01, 0.0, 0.0)
    return [
        line(arm, seed, 0.7 + (scatter[seed] if arm == "top_1" else 0), 10)
        for arm in ("top_1", "none_frozen")
        for seed in range(4)
    ]


def test_a_pilot_takes_the_place_of_what_is_assumed():
    said = before(4, 2, {"sentiment": (5, 5)}, piloted())
    assert "if differences vary as in the 1 comparison done so far" in said
    assert said.endswith("the test texts alone leave a standard error of 0.000")


def test_differences_are_those_to_full_fine_tuning_or_between_what_is_no_control():
    full = [*piloted(), *[line("gradual", seed, 0.6, 10) for seed in range(4)]]
    assert [round(each.mean, 3) for each in differences(full)] == [0.0, -0.1]
    own = [line(arm, seed, score, 10) for arm, score in OWN.items() for seed in range(4)]
    for result in own:
        result["untrained_heads"] = ["sentiment"] if result["arm"] == "control" else []
    assert [round(each.mean, 3) for each in differences(own)] == [-0.1]


def test_after_a_study_the_errors_that_its_sizes_leave():
    results = piloted()
    found = after(results)
    assert found is not None
    # s = 0.00816 of four seeds.
    assert found["over_seeds"] == found["error"] == pytest.approx(0.0040825, abs=1e-6)
    assert (found["over_texts"], found["seeds"], found["comparisons"]) == (None, 4, 1)
    assert "that of other texts is not known" in after_text(results)
    for result in results:
        for of_task in result["test"].values():
            size = 0.001 if result["arm"] == "top_1" else 0.0
            part = np.tile([size, -size], 50)
            of_task["macro_f1"] = Measured(of_task["macro_f1"], lambda part=part: {"t": part})
    found = after(results)
    assert found is not None
    assert found["over_texts"] == pytest.approx(0.01)
    assert found["error"] == pytest.approx(math.hypot(0.0040825, 0.01), abs=1e-6)
    assert "other texts alone one of 0.010." in after_text(results)
    assert after(results[:4]) is None
    assert after_text(results[:4]) == ""
