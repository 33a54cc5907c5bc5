"""Traces of real runs, read back."""

import warnings

import jax
import pytest

from mtl_jax.config.monitoring import MonitoringConfig
from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.loop import train
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.inputs import Inputs
from tests.training.weighting.test_train import interrupted_at


@pytest.fixture
def settings(small_settings):
    """Of one layer: what is traced is steps."""
    return dict(small_settings)


@pytest.fixture(scope="module")
def inputs(small_settings):
    return Inputs(TrainConfig(**small_settings, workdir=""))


@pytest.fixture
def traced(settings, inputs, tmp_path):
    """Trains with a ``--profile``; gives the steps in its trace, None where there is none."""

    def run(profile, **changes):
        watch = MonitoringConfig(profile=profile)
        config = TrainConfig(**settings | changes, workdir=str(tmp_path / "run"), watch=watch)
        train(config, inputs)
        files = [*(tmp_path / "run").glob("profile/plugins/profile/*/*.xplane.pb")]
        assert len(files) <= 1
        return steps_in(files[0]) if files else None

    return run


def steps_in(file):
    profile = jax.profiler.ProfileData.from_file(str(file))
    events = [e for plane in profile.planes for line in plane.lines for e in line.events]
    # A Python function's; hooks in all threads can end the process.
    assert not [event.name for event in events if event.name.startswith("$")]
    with warnings.catch_warnings():
        # Python 3.13 says so of a type of JAX 0.12, which ends the process where that is an error.
        warnings.filterwarnings("ignore", "builtin type event_stats", DeprecationWarning)
        return sorted(dict(e.stats)["step_num"] for e in events if e.name == "train")


@pytest.mark.parametrize(
    ("profile", "steps"), [("0:2", [1, 2]), ("4:7", [5, 6, 7]), ("11:40", [12])]
)
def test_the_trace_has_the_steps_that_were_asked_for(profile, steps, traced, capsys):
    """Of 12, and the sixth ends an epoch."""
    assert traced(profile, scenario="none_frozen") == steps
    assert f"the trace of --profile {profile} is in " in capsys.readouterr().err


def test_of_steps_in_one_program_all_are_traced(traced):
    """An epoch of six steps on kept vectors is one."""
    assert traced("8:9", scenario="backbone_frozen", epochs=3) == [7]


def test_steps_are_those_of_the_run_not_of_the_phase(traced):
    assert traced("13:15", recipe="lp_ft", epochs=4) == [14, 15]


def test_beyond_the_run_there_is_a_note_and_no_trace(traced, capsys):
    assert traced("12:14", scenario="none_frozen") is None
    said = capsys.readouterr().err
    assert "note: --profile 12:14 is beyond the 12 steps of the run: there will be no" in said
    assert said.count("--profile") == 1


def test_a_resumed_run_may_be_traced_and_says_what_has_passed(traced, monkeypatch, capsys):
    changes = {"scenario": "top_1", "checkpoint_every": 4}
    with monkeypatch.context() as patch:
        patch.setattr("mtl_jax.runs.loop.training_bar", interrupted_at(9))
        with pytest.raises(KeyboardInterrupt):
            traced(None, **changes)
    with monkeypatch.context() as patch:
        patch.setattr("mtl_jax.runs.loop.training_bar", interrupted_at(10))
        with pytest.raises(KeyboardInterrupt):
            traced("2:4", **changes)
    assert "note: --profile 2:4: there is no trace, for none of these" in capsys.readouterr().err
    assert traced("7:10", **changes) == [9, 10]


def test_a_trace_that_is_cut_short_is_written(settings, inputs, tmp_path, monkeypatch):
    watch = MonitoringConfig(profile="2:12")
    config = TrainConfig(**settings, workdir=str(tmp_path), scenario="top_1", watch=watch)
    monkeypatch.setattr("mtl_jax.runs.loop.training_bar", interrupted_at(5))
    with pytest.raises(KeyboardInterrupt):
        train(config, inputs)
    [file] = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    assert steps_in(file) == [3, 4, 5]


def test_a_trace_that_cannot_be_written_stops_no_run(traced, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("mtl_jax.runs.loop.training_bar", interrupted_at(2))
        with pytest.raises(KeyboardInterrupt):
            traced(None, scenario="top_1")
    (tmp_path / "run" / "profile").write_text("in the way")
    assert traced("3:5", scenario="top_1") is None
    assert "warning: there is no trace in " in capsys.readouterr().err
    assert Workdir(tmp_path / "run").result()
