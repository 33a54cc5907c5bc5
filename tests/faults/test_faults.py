"""The fault script on the tiny BERT: real processes killed, real folders damaged."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.loop import train
from tests import forked
from tests.faults import trials as fault_trials
from tests.faults.__main__ import Faults, carry_out, tally
from tests.faults.runs import Ended, differences
from tests.faults.trials import Outcome


def test_a_run_survives_a_few_of_everything(small_flags, tmp_path, capsys):
    flags = [f for f in small_flags if not f.startswith("--epochs")]
    flags = [*flags, "--recipe=lp_ft", "--epochs=4", "--checkpoint-minutes=1e-3"]
    faults = Faults(workdir=str(tmp_path / "faults"), kills=3, terms=1, corruptions=5)
    passed = carry_out(faults, flags, forked.Popen)
    printed = capsys.readouterr()
    assert passed, printed.out + printed.err
    lines = printed.out.splitlines()
    assert [line.partition(":")[0].partition(" (")[0] for line in lines] == [
        "SIGKILL",
        "SIGTERM",
        "damage",
    ]
    for line, count in zip(lines, (3, 1, 5), strict=True):
        assert f": {count} of {count} passed: " in line
    record = json.loads((tmp_path / "faults" / "faults.json").read_text())
    assert {name: len(trials) for name, trials in record["trials"].items()} == {
        "SIGKILL": 3,
        "SIGTERM": 1,
        "damage": 5,
    }
    assert record["flags"] == flags
    # The folders of trials that were passed are gone.
    assert sorted(path.name for path in (tmp_path / "faults").iterdir()) == [
        *("cut", "faults.json", "logs", "whole")
    ]


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("")
    ended = forked.run(
        [sys.executable, "-m", "tests.faults", f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == f"error: --workdir {tmp_path} is there already: name a new folder\n"


@pytest.fixture(scope="module")
def two_runs(shared_settings, tmp_path_factory):
    """The folders of one seed's run, and of another's."""
    folder = tmp_path_factory.mktemp("two")
    config = TrainConfig(**shared_settings, workdir=str(folder / "first"), scenario="top_1")
    train(config)
    train(dataclasses.replace(config, seed=1, workdir=str(folder / "second")))
    return folder / "first", folder / "second"


def test_every_difference_of_two_runs_is_found(two_runs, tmp_path):
    first, second = two_runs
    assert differences(first, first) == []
    found = differences(second, first)
    assert "the params at step 12" in found
    assert "the optimizer at step 12" in found
    assert "metrics.jsonl" in found
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    log = (copy / "metrics.jsonl").read_text().replace('"best_epoch": ', '"best_epoch": 1')
    (copy / "metrics.jsonl").write_text(log)
    assert differences(copy, first) == ["metrics.jsonl"]


DAMAGES = ("_flip", "_truncate", "_remove", "_remove_part", "_half_write")


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_done_and_is_the_same_for_the_same_seed(kind, two_runs, tmp_path):
    said, left = set(), set()
    for attempt in range(2):
        copy = tmp_path / str(attempt)
        shutil.copytree(two_runs[0] / "checkpoints", copy)
        said.add(getattr(fault_trials, kind)(copy, np.random.default_rng(5)))
        left.add(tuple(sorted(contents(copy).items())))
    assert len(said) == len(left) == 1
    assert dict(*left) != contents(two_runs[0] / "checkpoints")


def contents(folder: Path):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("status", "said", "is_one"),
    [
        (2, "a note\nerror: it is damaged: mend it\n", True),
        (0, "error: it is damaged: mend it\n", False),
        (1, "Traceback (most recent call last):\nerror: it\n", False),
        (2, "Traceback (most recent call last):\nerror: it\n", False),
        (2, "", False),
    ],
)
def test_a_refusal_is_one_line_and_no_traceback(status, said, is_one):
    assert Ended(status, said, "").in_one_line is is_one


def test_the_tally_counts_what_failed():
    passed, saving = Outcome("", True, "the same"), Outcome("", True, "the same", True)
    failed = Outcome("", False, "another end")
    assert tally({"SIGKILL": [passed, saving, failed], "damage": []}) == [
        "SIGKILL (1 while a checkpoint was being written): 2 of 3 passed: 2 the same; 1 FAILED",
        "damage: 0 of 0 passed: not tried",
    ]
