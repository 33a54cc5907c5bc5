"""When a phase ends, what the next one goes on from, and what a restart carries over."""

import json
import math

import pytest

from mtl_jax.freezing.phase import Phase
from mtl_jax.runs.progress import PhaseProgress, beats, chained_steps, score

METRICS = {
    "classifier": {"macro_f1": 0.5, "loss": 1.0},
    "sentiment": {"macro_f1": 0.25, "loss": 3.0},
}
BOTH = {"classifier": 1.0, "sentiment": 1.0}


def phase(**fields):
    return Phase(**{"scenario": "top_1", "task_weights": BOTH, **fields})


def progress(*scores, **fields):
    """Progress with measurements at steps 10, 20 ..."""
    measured = [(10 * i, value) for i, value in enumerate(scores, start=1)]
    return PhaseProgress(measured=measured, **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.375),
        ({"task_weights": {"classifier": 1.0, "sentiment": 0.0}}, 0.5),
        ({"task_metric": "sentiment"}, 0.25),
        ({"metric": "loss"}, -2.0),
        ({"metric": "loss", "task_metric": "sentiment"}, -3.0),
        ({"metric": "loss", "task_weights": {"classifier": 0.0, "sentiment": 1.0}}, -3.0),
    ],
)
def test_what_a_phase_is_judged_by(fields, expected):
    assert score(phase(**fields), METRICS) == expected


def test_a_task_without_labels_is_left_out():
    metrics = {**METRICS, "sentiment": {"macro_f1": None, "loss": None}}
    assert score(phase(), metrics) == 0.5
    assert score(phase(task_metric="sentiment"), metrics) == 0.0


@pytest.mark.parametrize(
    ("scores", "min_gain", "stale"),
    [
        ((), 0.0, 0),
        ((0.5,), 0.0, 0),
        ((0.5, 0.6), 0.0, 0),
        ((0.5, 0.5), 0.0, 1),
        ((0.5, 0.6, 0.4, 0.55), 0.0, 2),
        ((0.5, 0.6, 0.4, 0.65), 0.0, 0),
        ((0.5, 0.55, 0.59), 0.1, 2),
        ((-3.0, -2.0, -2.5), 0.0, 1),
    ],
)
def test_a_plateau_is_counted_from_the_best(scores, min_gain, stale):
    assert progress(*scores).stale(min_gain) == stale


@pytest.mark.parametrize(
    ("fields", "scores", "step", "verdict"),
    [
        ({}, (0.5,), 110, None),
        ({}, (0.5,), 130, "30 steps done"),
        ({"patience": 1}, (0.5, 0.6), 110, None),
        ({"patience": 1}, (0.5, 0.4), 110, "no better for 1 measurement"),
        ({"patience": 2}, (0.5, 0.4), 110, None),
        ({"patience": 2}, (0.5, 0.4, 0.5), 120, "no better for 2 measurements"),
        ({"patience": 2}, (0.5, 0.6), 130, "30 steps done"),
    ],
)
def test_when_a_phase_is_over(fields, scores, step, verdict):
    assert progress(*scores, start=100).verdict(phase(**fields), step, 30) == verdict


@pytest.mark.parametrize(
    ("before", "scores", "asked", "refused"),
    [
        (0.5, (0.6,), None, False),
        (0.5, (0.6,), 0.05, False),
        (0.5, (0.54, 0.51), 0.05, True),
        (0.5, (0.4,), 0.0, True),
        (0.5, (0.5,), 0.0, False),
        (None, (0.4,), 0.05, False),
    ],
)
def test_the_next_phase_begins_where_the_last_has_paid(before, scores, asked, refused):
    words = progress(*scores, best_before=before, phase=2).refusal(phase(requires_gain=asked))
    assert (words is not None) == refused
    if words:
        gain = max(scores) - before
        assert words == (f"phase 3 changed the best score by {gain:+.4f}, top_1 asks for {asked:g}")


@pytest.mark.parametrize(
    ("fields", "target", "needed"),
    [
        ({}, 30, []),
        ({"keep_best": True}, 20, [20]),
    ],
)
def test_what_the_next_phase_goes_on_from(fields, target, needed):
    found = progress(0.5, 0.7, 0.6)
    assert found.target(phase(**fields), 30) == target
    assert found.needed(phase(**fields)) == needed


def test_of_equal_measurements_the_first_is_the_best():
    assert progress(0.5, 0.7, 0.7).best == (20, 0.7)
    assert progress().best is None


@pytest.mark.parametrize(
    ("value", "best", "expected"),
    [
        (0.5, -math.inf, True),
        (0.5, 0.4, True),
        (0.5, 0.5, False),
        (-3.0, -math.inf, True),
        (math.nan, -math.inf, False),
        (math.nan, 0.5, False),
    ],
)
def test_what_takes_the_place_of_the_best(value, best, expected):
    assert beats(value, best) is expected


def test_what_is_not_a_number_is_never_the_best():
    assert progress(math.nan, 0.5, math.nan).best == (20, 0.5)
    assert progress(math.nan).best is None


def test_the_next_phase_knows_what_was_before():
    old = progress(0.5, 0.7, 0.6, start=100, passed=2.0, schedule_start=3, positions={"some": 4})
    new = old.next(phase(), phase(scenario="top_2"), 130, 1.5, "all")
    assert new == PhaseProgress(
        phase=1,
        start=130,
        passed=3.5,
        positions={"some": 4, "all": 30},
        best_before=0.7,
    )
    again = new.next(phase(), phase(restart=False), 140, 0.5, "all")
    assert (again.schedule_start, again.positions["all"]) == (10, 40)
    following = again.next(phase(), phase(restart=False), 145, 0.5, "some")
    assert (following.schedule_start, following.positions["some"]) == (15, 9)


@pytest.mark.parametrize(
    ("before", "after", "known"),
    [
        ({}, {}, 0.8),
        ({}, {"metric": "loss"}, None),
        ({}, {"task_metric": "sentiment"}, None),
        ({"task_weights": {"classifier": 1.0, "sentiment": 0.0}}, {}, None),
        (
            {"task_weights": {"classifier": 0.0, "sentiment": 1.0}},
            {"task_metric": "sentiment"},
            0.8,
        ),
    ],
)
def test_scores_are_compared_with_their_like(before, after, known):
    old = progress(0.5, 0.7, best_before=0.8)
    assert old.next(phase(**before), phase(**after), 20, 1.0, "all").best_before == known


def test_frozen_activations_are_paid_for_once():
    here = PhaseProgress()
    assert here.book_features(["a", "b", "c"], 6.0) == 6.0
    # A part of the same bottom has been computed on the way.
    assert here.book_features(["a", "b"], 4.0) == 0.0
    # A deeper one goes on from it.
    assert here.book_features(["a", "b", "c", "d"], 8.0) == 2.0
    # Another bottom has nothing in common with it.
    assert here.book_features(["a", "x"], 3.0) == 3.0
    assert here.book_features(["a", "x"], 3.0) == 0.0


def test_a_restart_carries_everything_over():
    here = progress(
        0.5,
        phase=3,
        start=4,
        passed=0.5,
        schedule_start=1,
        positions={"classifier": 4},
        best_before=0.25,
        drifted=True,
        over="30 steps done",
        stopped="enough",
        frozen_before="abc",
        certificates=[{"labels": {}}],
        features=[(["a", "b"], 1.5)],
    )
    assert PhaseProgress.load(json.loads(json.dumps(here.state()))) == here
    assert PhaseProgress.load(json.loads(json.dumps(PhaseProgress().state()))) == PhaseProgress()


def test_phases_that_share_a_schedule():
    phases = [phase(restart=restart) for restart in (True, False, False, True, False)]
    bounds = [1, 2, 4, 8, 16]
    assert [chained_steps(phases, bounds, i) for i in range(5)] == [7, 7, 7, 24, 24]
