"""The freezing study as a real process, on the tiny BERT."""

import json
import os
import subprocess
import sys

import pytest
from conftest import without_times

from experiments.freezing import Freezing
from mtl_jax.config import DataConfig
from mtl_jax.errors import UserError

SCENARIOS = ["all_frozen", "backbone_frozen", "none_frozen"]
TASKS = ["classifier", "sentiment"]


def study(folder, flags, seeds, scenarios=SCENARIOS):
    return subprocess.run(
        [
            *(sys.executable, "-m", "experiments.freezing", f"--workdir={folder}"),
            *("--scenarios", *scenarios, "--seeds", *seeds, *flags),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
        check=False,
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


def test_two_seeds_then_a_third(folder, flags):
    first = study(folder, flags, ["0", "1"])
    assert first.returncode == 0, first.stderr
    assert str(folder / "report.html") in first.stderr
    assert "none_frozen" in first.stdout
    results = lines(folder)
    arms = [(result["arm"], result["seed"]) for result in results]
    assert arms == [(arm, seed) for seed in (0, 1) for arm in SCENARIOS]
    for result in results:
        assert_schema(result)
    for name in ("report.md", "report.html", "quality_against_cost.png"):
        assert (folder / name).stat().st_size > 1000
    assert not list(folder.glob("arms/*/checkpoints"))

    again = study(folder, flags, ["0", "1"])
    assert again.returncode == 0
    assert lines(folder) == results
    assert "arm 1 of" not in again.stderr

    # A kill in the middle of a line must cost that arm only.
    text = (folder / "results.jsonl").read_text()
    (folder / "results.jsonl").write_text(text[: text.rindex("{") + 40])
    # And an arm whose folder belongs to something else must not stop the others.
    taken = folder / "arms" / "backbone_frozen-seed2"
    taken.mkdir()
    (taken / "config.json").write_text("{}")
    third = study(folder, flags, ["0", "1", "2"])
    assert third.returncode == 1
    assert "another configuration" in third.stderr
    after = lines(folder)
    assert {(r["arm"], r["seed"]) for r in after} == {
        *arms,
        ("all_frozen", 2),
        ("none_frozen", 2),
    }
    assert after[: len(results) - 1] == results[:-1]
    repeated = next(r for r in after if (r["arm"], r["seed"]) == arms[-1])
    assert without_times(repeated) == without_times(results[-1])
    assert "another configuration" in (folder / "report.md").read_text()


def assert_schema(result):
    for split in ("test", "train"):
        for task in TASKS:
            assert isinstance(result[split][task]["accuracy"], float)
            assert isinstance(result[split][task]["macro_f1"], float)
        assert isinstance(result[split]["sentiment"]["weighted_f1_by_source"], dict)
    for number in ("train_seconds", "compile_seconds", "examples_per_second"):
        assert result[number] >= 0
    assert isinstance(result["trainable_parameters"], int)
    assert isinstance(result["optimizer_state_bytes"], int)
    assert result["frozen_digest_unchanged"] is True
    assert (result["arm"] == "all_frozen") == ("probe" in result)


def test_mistakes_are_told_before_anything_is_trained(flags, tmp_path):
    done = study(tmp_path / "x", flags, ["0"], ["none_frozen", "bottom_2"])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: unknown scenario 'bottom_2'")
    assert not (tmp_path / "x").exists()


def test_a_study_of_ones_own_data_takes_all_of_it(settings, tmp_path):
    quick = Freezing(workdir=str(tmp_path), seeds=(0, 1, 0))
    assert (quick.data.max_train_examples, quick.data.max_evaluation_examples) == (384, 320)
    assert quick.seeds == (0, 1)
    limits = quick.data.__dict__.keys() & {"max_train_examples", "max_evaluation_examples"}
    data = {**vars(settings["data"]), **{name: getattr(quick.data, name) for name in limits}}
    own = Freezing(workdir=str(tmp_path), data=DataConfig(**data))
    assert own.data == settings["data"]
    with pytest.raises(UserError, match="--scenarios is empty"):
        Freezing(workdir=str(tmp_path), scenarios=())
