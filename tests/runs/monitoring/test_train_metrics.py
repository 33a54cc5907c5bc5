"""Seconds of single steps, whether the host waits for each or sends the next one off before."""

import json

import pytest

from mtl_jax.runs.monitoring.train_metrics import StepTimes


def median_and_range(times):
    summary = times.summary()
    return summary["step_seconds_median"], summary["step_seconds_range"]


def row(times, sent, waited, steps=1, compiled=False):
    for seconds in sent:
        times.sent(seconds, steps, compiled)
        compiled = False
    times.waited(waited)


def test_steps_that_run_behind_the_host_take_as_long_as_those_it_waits_for():
    behind, waited_for = StepTimes(), StepTimes()
    # The first two are sent off at once; when the last is, two are still running.
    row(behind, [0.0, 0.0, 0.2, 0.2, 0.2, 0.2], 0.4)
    row(waited_for, [0.2] * 6, 0.0)
    assert median_and_range(behind) == median_and_range(waited_for)
    assert median_and_range(behind) == (pytest.approx(0.2), pytest.approx([0.2, 0.2]))


def test_a_row_of_one_step_and_of_many_in_one_program():
    times = StepTimes()
    row(times, [0.0], 0.3)
    row(times, [2.0, 2.0, 1.0], 0.0, steps=10)
    # One step of 0.3 s, twenty of 0.2 s, ten of 0.1 s.
    median, (low, high) = median_and_range(times)
    assert (median, low, high) == pytest.approx((0.2, 0.1, 0.2))


def test_steps_of_a_call_that_compiled_are_left_out_unless_there_are_no_others():
    times = StepTimes()
    assert median_and_range(times) == (None, None)
    row(times, [9.0, 0.0], 1.0, compiled=True)
    assert median_and_range(times) == (5.0, [5.0, 5.0])
    row(times, [0.0, 0.0, 0.5], 1.0)
    assert median_and_range(times) == (0.5, [0.5, 0.5])


def test_what_is_kept_is_bounded_spread_over_the_run_and_carried_over_a_restart():
    times = StepTimes()
    for step in range(5000):
        times.sent(step / 5000, 1, False)
        times.waited(0.0)
        if step % 1000 == 0:
            state = json.loads(json.dumps(times.state()))
            times = StepTimes(state)
    assert len(times.state()["kept"]) <= 256
    median, (low, high) = median_and_range(times)
    assert (median, low, high) == pytest.approx((0.5, 0.1, 0.9), abs=0.01)
