"""Flags for watching a run: what is refused, and that a run may go on with others."""

import math
import re

import pytest

from mtl_jax.cli.flags import Command
from mtl_jax.config.monitoring import MonitoringConfig
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.command_line import parse
from mtl_jax.core.errors import UserError
from mtl_jax.runs.loop import train
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.inputs import Inputs


def test_the_flags_are_flat():
    argv = ["train", "--workdir=w", "--profile=10:13", "--heartbeat=2.5"]
    config = parse(Command, argv, "program", "")
    assert config.watch == MonitoringConfig(heartbeat=2.5, profile="10:13")
    assert list(config.watch.profiled) == [10, 11, 12]
    assert list(MonitoringConfig().profiled) == []


@pytest.mark.parametrize(
    "profile", ["", "10", "10:", ":10", "-1:3", "1:2:3", "a:b", "1.5:2", "٣:٤"]
)
def test_what_is_no_pair_of_steps_is_refused(profile):
    with pytest.raises(UserError, match=f"--profile {re.escape(repr(profile))} is not START:STOP"):
        MonitoringConfig(profile=profile)


@pytest.mark.parametrize("profile", ["3:3", "4:3"])
def test_steps_that_end_before_they_start_are_refused(profile):
    with pytest.raises(UserError, match=f"--profile {profile} starts at or after its stop"):
        MonitoringConfig(profile=profile)


@pytest.mark.parametrize("seconds", [-1.0, math.inf, math.nan])
def test_a_heartbeat_has_a_number_of_seconds(seconds):
    with pytest.raises(UserError, match=r"--heartbeat .* must be a number of seconds"):
        MonitoringConfig(heartbeat=seconds)


def test_a_project_has_a_name():
    with pytest.raises(UserError, match="--wandb names no project"):
        MonitoringConfig(wandb=" ")


def test_a_run_may_be_watched_otherwise_at_its_next_start(settings, tmp_path):
    config = TrainConfig(**settings, workdir=str(tmp_path), watch=MonitoringConfig(heartbeat=0.0))
    inputs = Inputs(config)
    first = train(config, inputs)
    record = Workdir(tmp_path).config()
    assert "watch" not in record["settings"]
    assert record["environment"]["limits"]["watch"]["heartbeat"] == 0.0
    again = TrainConfig(**settings, workdir=str(tmp_path), watch=MonitoringConfig(profile="1:2"))
    assert train(again, inputs) == first
