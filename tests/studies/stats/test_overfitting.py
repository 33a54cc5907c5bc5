"""How far a run overfits, from numbers that can be worked out."""

from mtl_jax.studies.stats.overfitting import (
    calibration_error,
    loss_past_its_minimum,
    mean_gap,
)
from tests.synthetic_study import line

LINE = line("none_frozen", 0, 0.7, 1.0)


def measured(*losses):
    """Of the first task alone; the second has other metrics on validation."""
    return [{"validation": {"classifier": {"loss": loss}}} for loss in losses]


def test_the_loss_at_the_end_is_held_against_its_minimum():
    assert loss_past_its_minimum({**LINE, "curve": measured(0.5, 0.25, 0.75)}) == 0.5
    assert loss_past_its_minimum({**LINE, "curve": measured(0.75, 0.5)}) == 0
    # A single measurement is its own minimum, and says nothing.
    assert loss_past_its_minimum({**LINE, "curve": measured(0.75)}) is None
    assert loss_past_its_minimum(LINE) is None


def test_gap_and_calibration_are_means_over_the_tasks_that_have_them():
    test = {
        "classifier": {"macro_f1": 0.5, "ece": 0.25},
        "sentiment": {"macro_f1": 0.25, "ece": 0.5},
    }
    train = {"classifier": {"macro_f1": 0.75}, "sentiment": {"macro_f1": 0.75}}
    assert mean_gap({**LINE, "test": test, "train": train}, "test") == 0.375
    assert calibration_error({**LINE, "test": test}, "test") == 0.375
    assert (
        calibration_error({**LINE, "test": {**test, "sentiment": {"macro_f1": 0.25}}}, "test")
        == 0.25
    )
    assert calibration_error(LINE, "test") is None
    assert mean_gap({**LINE, "train": None}, "test") is None
