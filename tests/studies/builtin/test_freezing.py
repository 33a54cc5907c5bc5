"""The freezing study as a real process, on the tiny BERT."""

import json
import shutil
import sys

import numpy as np
import pytest

from mtl_jax.cli.study import run_study
from mtl_jax.core.command_line import parse
from mtl_jax.core.errors import UserError
from mtl_jax.studies import read_predictions, recompute
from mtl_jax.studies.best_run import best_run, run_folder
from mtl_jax.studies.builtin.freezing import Freezing, run
from mtl_jax.studies.judge import judge, keep
from mtl_jax.tools.predict import Predictor
from tests import forked
from tests.conftest import write_record
from tests.faults.runs import without_times

SCENARIOS = ["all_frozen", "backbone_frozen", "none_frozen"]
TASKS = ["classifier", "sentiment"]


def study(folder, flags, seeds, scenarios=SCENARIOS):
    return forked.run(
        [
            *(sys.executable, "-m", "experiments.freezing", f"--workdir={folder}"),
            *("--arms", *scenarios, "--seeds", *seeds, *flags),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


def test_two_seeds_then_a_third(folder, small_settings, small_flags, capsys):
    first = study(folder, small_flags, ["0", "1"])
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
    # The model of the best arm is kept, and the report ends with the command that uses it.
    (kept,) = folder.glob("arms/*/checkpoints")
    best = best_run(results)
    assert best is not None
    assert kept.parent == run_folder(folder, best)
    assert (folder / "report.md").read_text().rstrip().splitlines()[-2:] == [
        f"    python -m mtl_jax predict --workdir {kept.parent} < texts.txt",
        f"    python -m mtl_jax evaluate --workdir {kept.parent} --split test",
    ]
    assert len(Predictor(kept.parent).predict(["the film was good"])) == 1

    assert_computed_again(folder, results)
    assert_judged_again(folder, results, capsys)

    asked = {"workdir": str(folder), "arms": tuple(SCENARIOS), "seeds": (0, 1)}
    capsys.readouterr()
    assert run(Freezing(**small_settings, **asked), "the command") == 0
    assert lines(folder) == results
    assert "arm 1 of" not in capsys.readouterr().err

    # A kill in the middle of a line must cost that arm only.
    text = (folder / "results.jsonl").read_text()
    (folder / "results.jsonl").write_text(text[: text.rindex("{") + 40])
    # And an arm whose folder belongs to something else must not stop the others.
    taken = folder / "arms" / "backbone_frozen-seed2"
    taken.mkdir()
    write_record(taken, {})
    third = study(folder, small_flags, ["0", "1", "2"])
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


def assert_computed_again(folder, results):
    """Every score of the study, from what alone is kept of it elsewhere."""
    kept = folder.parent / "kept"
    for path in folder.glob("arms/*/predictions-*.parquet"):
        copy = kept / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    spoilt = json.loads(json.dumps(results))
    for result in spoilt:
        for split in ("train", "validation", "test"):
            for of_task in result[split].values():
                of_task |= {"accuracy": 0.0, "macro_f1": 0.0, "per_class": {}, "ece": 0.0}
                of_task["weighted_f1_by_source"] = {"none": 0.0}
    (kept / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in spoilt))
    assert recompute(kept) == results
    # Of a split whose predictions were not kept the line has what it had.
    next(kept.glob("arms/none_frozen-seed1/predictions-train.parquet")).unlink()
    again = recompute(kept)
    assert again[-1] == {**results[-1], "train": spoilt[-1]["train"]}
    damaged = next(kept.glob("arms/none_frozen-seed0/predictions-test.parquet"))
    damaged.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"predictions-test.parquet is not a Parquet file"):
        recompute(kept)


def assert_judged_again(folder, results, capsys):
    """From what is kept of it elsewhere: no training, and the same decisions."""
    kept = folder.parent / "given away"
    keep(folder, kept)
    assert sorted(path.name for path in kept.iterdir()) == [
        "arms",
        "baselines",
        "baselines.jsonl",
        "results.jsonl.gz",
        "study.json",
    ]
    assert len(list(kept.glob("baselines/*/predictions-test.parquet"))) == 2
    assert recompute(kept) == results
    few = folder.parent / "few digits"
    keep(folder, few, digits=2)
    assert recompute(few) == results
    sizes = [sum(p.stat().st_size for p in f.rglob("*.parquet")) for f in (few, kept)]
    assert sizes[0] < sizes[1]
    # The least likely classes have their digits, too: losses depend on their logarithms.
    file = "arms/none_frozen-seed0/predictions-test.parquet"
    found = [read_predictions(each / file).tasks["sentiment"].probabilities for each in (few, kept)]
    rounded, exact = (np.asarray(each, np.float64).ravel() for each in found)
    np.testing.assert_allclose(rounded, exact, rtol=0.0501)
    assert all(float(f"{p:.1e}") == pytest.approx(p) for p in rounded)
    written = folder.parent / "judged"
    assert run_study(["judge", str(kept), f"--output={written}"]) == 0
    assert statistics(written) == statistics(folder)
    # Of the predictions that are kept, which are not beside the report.
    assert "## Confusion matrices" in (written / "report.md").read_text()
    assert "Intervals cover other seeds" in statistics(written)
    assert "other test texts together" in statistics(written)
    # Without what runs predict they are over seeds alone, and the report says so.
    next(kept.glob("arms/none_frozen-seed0/predictions-test.parquet")).unlink()
    assert "left no predictions" not in capsys.readouterr().err
    judge(kept, written)
    assert "note: 1 run of 6 left no predictions on test: the" in capsys.readouterr().err
    assert "not other test texts" in statistics(written)
    again = folder.parent / "again"
    keep(kept, again)
    packed = "results.jsonl.gz"
    assert (again / packed).read_bytes() == (kept / packed).read_bytes()
    with pytest.raises(UserError, match=r"results\.jsonl is missing"):
        run_study(["judge", str(folder / "arms")])
    # Before the report, which takes a while.
    before = [(path, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))]
    for flag, words in (
        (f"--keep={folder}/arms/..", "is the folder of the study itself"),
        (f"--keep={folder}/results.jsonl", "is a file: name a folder"),
        ("--output=/dev/null", "is a device: name a folder"),
        ("--output=", "names nothing"),
    ):
        with pytest.raises(UserError, match=words):
            run_study(["judge", str(folder), flag])
    assert [(path, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))] == before


def statistics(folder):
    text = (folder / "report.md").read_text()
    return text[text.index("## Statistics") : text.index("## Runs")]


def test_seeds_at_once_leave_what_one_by_one_does(small_settings, tmp_path, capsys):
    scenarios = ("all_frozen", "backbone_frozen", "top_1")

    def study_of(name, at_once, scenarios=scenarios):
        own = {"workdir": str(tmp_path / name), "seeds": (0, 1), "seeds_at_once": at_once}
        return run(Freezing(**small_settings, **own, arms=scenarios), "the command")

    assert study_of("single", 1) == 0
    assert study_of("group", 2, scenarios[:1]) == 0
    # An arm whose folder belongs to something else must not stop the one beside it.
    taken = tmp_path / "group" / "arms" / "top_1-seed1"
    taken.mkdir()
    write_record(taken, {})
    capsys.readouterr()
    assert study_of("group", 2) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("arm ")]
    assert said[:-1] == [
        f"arm {3 + i} of 6: {arm}, seed {seed}"
        for i, (arm, seed) in enumerate((a, s) for a in scenarios[1:] for s in (0, 1))
    ]
    assert said[-1].startswith("arm 6 failed: ")
    assert "another configuration" in said[-1]
    order = [(arm, seed) for arm in scenarios for seed in (0, 1)]
    assert [(r["arm"], r["seed"]) for r in lines(tmp_path / "group")] == order[:-1]

    shutil.rmtree(taken)
    assert study_of("group", None) == 0
    results = lines(tmp_path / "group")
    assert [(r["arm"], r["seed"]) for r in results] == order
    one_by_one = {(r["arm"], r["seed"]): r for r in lines(tmp_path / "single")}
    for result in results:
        assert_schema(result)
        expected = one_by_one[result["arm"], result["seed"]]
        assert result.keys() == expected.keys()
        assert result["train_flops"] == expected["train_flops"]
        assert len(result["curve"]) == len(expected["curve"])
        for split in ("test", "train", "validation"):
            for task in TASKS:
                found, wanted = result[split][task], expected[split][task]
                assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
                assert found["macro_f1"] == pytest.approx(wanted["macro_f1"], abs=1e-6)
    # What is left to auto is one after the other on a CPU.
    assert "seeds_at_once | 1 |" in (tmp_path / "group" / "report.md").read_text()


def assert_schema(result):
    for split in ("test", "train"):
        for task in TASKS:
            assert isinstance(result[split][task]["accuracy"], float)
            assert isinstance(result[split][task]["macro_f1"], float)
        assert isinstance(result[split]["sentiment"]["weighted_f1_by_source"], dict)
    wall = dict(result["wall_time"])
    assert wall.pop("total_seconds") == pytest.approx(sum(wall.values()))
    assert min(wall.values()) >= 0
    assert wall["measurement_seconds"] > 0
    assert wall["step_seconds"] + wall["frozen_pass_seconds"] <= result["train_seconds"] + 1e-9
    assert result["by_phase"][-1]["tasks"] == TASKS
    for number in ("train_seconds", "compile_seconds", "examples_per_second"):
        assert result[number] >= 0
    assert isinstance(result["train_flops"], int)
    if result["arm"] != "all_frozen":
        low, high = result["step_seconds_range"]
        assert low <= result["step_seconds_median"] <= high
    assert isinstance(result["trainable_parameters"], int)
    assert isinstance(result["optimizer_state_bytes"], int)
    assert result["frozen_digest_unchanged"] is True
    assert (result["arm"] == "all_frozen") == ("probe" in result)


def test_mistakes_are_told_before_anything_is_trained(flags, tmp_path):
    done = study(tmp_path / "x", flags, ["0"], ["none_frozen", "bottom_2"])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: unknown arm 'bottom_2'")
    assert not (tmp_path / "x").exists()


def test_a_study_of_ones_own_data_takes_all_of_it(settings, tmp_path):
    quick = Freezing(workdir=str(tmp_path), seeds=(0, 1, 0))
    assert limits_of(quick.data) == (320, 320, 1500)
    assert quick.seeds == (0, 1)
    with pytest.raises(UserError, match="--arms is empty"):
        Freezing(workdir=str(tmp_path), arms=())
    with pytest.raises(UserError, match="--seeds-at-once 0 must be at least 1"):
        Freezing(workdir=str(tmp_path), seeds_at_once=0)
    own = Freezing(workdir=str(tmp_path), data=settings["data"])
    assert own.data == settings["data"]
    assert [(s.head_learning_rate, s.min_steps) for s in (quick, own)] == [(0.01, 80), (None, None)]
    asked = Freezing(workdir=str(tmp_path), data=settings["data"], head_learning_rate=0.01)
    assert asked.head_learning_rate == 0.01


@pytest.mark.parametrize(
    ("asked", "limits"),
    [
        ([], (320, 320, 1500)),
        (["--max-train-examples", "2000"], (2000, 320, 1500)),
        (["--max-train-examples", "None"], (None, 320, 1500)),
        (["--max-test-examples", "None"], (320, 320, None)),
        (["--train-file", "a.csv"], (None, None, None)),
        (["--train-file", "a.csv", "--max-train-examples", "2000"], (2000, None, None)),
        (["--dataset", "imdb", "--max-validation-examples", "9"], (None, 9, None)),
        (["--train-file=a.csv", "--max-train-examples=320"], (320, None, None)),
    ],
)
def test_only_limits_that_are_not_asked_for_are_those_of_the_quick_study(asked, limits):
    data = parse(Freezing, ["--workdir", "x", *asked], "freezing", "").data
    assert limits_of(data) == limits
    # As a record has them.
    assert {type(limit) for limit in limits_of(data)} <= {int, type(None)}


def limits_of(data):
    return data.max_train_examples, data.max_validation_examples, data.max_test_examples


def test_arms_come_by_whole_seeds():
    asked = Freezing(workdir="x", arms=("top_1", "none_frozen"), seeds=(4, 5, 6))

    def order(at_once):
        return [[(arm.name, arm.config.seed) for arm in group] for group in asked.groups(at_once)]

    both = ("top_1", "none_frozen")
    assert order(1) == [[(scenario, seed)] for seed in (4, 5, 6) for scenario in both]
    assert order(2) == [
        *([(scenario, 4), (scenario, 5)] for scenario in both),
        *([(scenario, 6)] for scenario in both),
    ]
