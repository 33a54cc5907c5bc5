"""What all studies share: their settings, arms and comparisons."""

import dataclasses
from pathlib import Path

import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.studies.own import study
from mtl_jax.studies.report.document import Bullets, Paragraph, Table
from mtl_jax.studies.report.outline import Parts, assemble
from mtl_jax.studies.report.study_sections import comparison_text
from mtl_jax.studies.settings import StudySettings, arm_folder, by_seeds
from mtl_jax.studies.stats.comparisons import (
    Comparison,
    compared,
    having,
    in_sequence,
    over_all,
    questions,
    values_of,
)
from mtl_jax.studies.stats.intervals import Interval, PairedDifference
from tests.synthetic_study import line


def test_folders_of_arms_can_be_read_and_differ():
    assert arm_folder("w", "top_1", 3, {}) == str(Path("w") / "arms" / "top_1-seed3")
    assert arm_folder("w", "top_1", 3, {"sentences": 64}).endswith("/top_1-sentences-64-seed3")
    slash, space = (arm_folder("w", "a", 0, {"backbone": name}) for name in ("x/y", "x y"))
    assert slash != space
    assert Path(slash).parent == Path("w") / "arms"


def test_arms_come_by_whole_seeds():
    groups = list(by_seeds(["a", "b"], [4, 5, 6], 2, lambda name, seed: f"{name}{seed}"))
    assert groups == [["a4", "a5"], ["b4", "b5"], ["a6"], ["b6"]]


def test_settings_of_a_study(tmp_path):
    study = StudySettings(workdir=str(tmp_path), seeds=(1, 0, 1))
    assert study.seeds == (1, 0)
    assert study.at_once() == 1
    assert dataclasses.replace(study, seeds_at_once=2).at_once() == 2
    assert "workdir" not in study.record()
    assert study.described("epochs").keys() >= {"seeds_at_once", "max_length"}
    assert not study.described("epochs").keys() & {"epochs", "workdir", "data"}
    # All arms have the same loss, whatever they train.
    assert study.of_a_run()["class_weights"] == ("none",)
    own = dataclasses.replace(study, class_weights=("sentiment=balanced",))
    assert own.of_a_run()["class_weights"] == ("sentiment=balanced", "none")
    with pytest.raises(UserError, match="--seeds is empty"):
        StudySettings(workdir=str(tmp_path), seeds=())
    with pytest.raises(UserError, match="--seeds-at-once 0 must be at least 1"):
        StudySettings(workdir=str(tmp_path), seeds_at_once=0)


def lines(size, arm, scores):
    return [
        {**line(arm, seed, score, 10.0), "setting": {"size": size}}
        for seed, score in enumerate(scores)
    ]


def score(result):
    return result["test"]["sentiment"]["macro_f1"]


RESULTS = [
    *lines(8, "top_1", (0.61, 0.62, 0.63)),
    *lines(8, "none_frozen", (0.60, 0.60, 0.60)),
    *lines(16, "top_1", (0.69, 0.69, 0.69, 0.9)),
    *lines(16, "none_frozen", (0.70, 0.71, 0.72)),
]


def test_comparisons_are_corrected_over_the_values():
    assert values_of(RESULTS, "size") == [8, 16]
    assert len(having(RESULTS, size=16)) == 7
    arms = {8: "top_1", 16: "top_1"}
    few, many = compared(RESULTS, "size", arms, "none_frozen", score)
    # Differences 0.01, 0.02, 0.03, and -0.01, -0.02, -0.03: t = 0.02 / (0.01 / sqrt(3)) with two
    # degrees of freedom has p 0.0742, of two comparisons by Holm's correction twice that.
    assert few.mean == pytest.approx(0.02)
    assert many.mean == pytest.approx(-0.02)
    assert many.difference.interval.n == 3
    (alone,) = compared(RESULTS, "size", {8: "top_1"}, "none_frozen", score)
    found = (few.p_value, many.p_value, alone.p_value)
    assert found == pytest.approx((0.1484, 0.1484, 0.0742), abs=1e-4)
    assert compared(RESULTS, "size", {8: "none_frozen"}, "none_frozen", score) == []


def test_of_ordered_comparisons_none_counts_behind_one_that_failed():
    assert in_sequence([0.01, 0.04, 0.2, 0.001]) == [0.01, 0.04, 0.2, 0.2]
    assert in_sequence([0.01, None, 0.001]) == [0.01, None, None]
    assert in_sequence([]) == []


@pytest.mark.parametrize(
    ("mean", "p_value", "words"),
    [
        (0.02, 0.0499, "+0.020 [−0.005, +0.045] against `b`, better (corrected p = 0.050)."),
        (
            0.02,
            0.0501,
            "+0.020 [−0.005, +0.045] against `b`, not told apart (corrected p = 0.0501).",
        ),
        (-0.02, 0.0002, "−0.020 [−0.005, +0.045] against `b`, worse (corrected p < 0.001)."),
        (0.02, None, "+0.020 [−0.005, +0.045] against `b`, not told apart (not tested, as one"),
    ],
)
def test_a_comparison_in_words(mean, p_value, words):
    difference = PairedDifference(Interval(mean, -0.005, 0.045, 3), 0.01, {})
    comparison = Comparison(8, "a", difference, p_value)
    assert comparison_text(comparison, "b", "with 8").startswith(f"with 8: `a` {words}")


def test_a_difference_within_the_margin_is_none_whatever_its_p_value():
    small = PairedDifference(Interval(0.008, 0.006, 0.01, 6), 2 / 64, {})
    assert Comparison(8, "a", small, 2 / 64).verdict == "alike within 0.01"
    assert Comparison(8, "a", small, 1.0).verdict == "alike within 0.01"
    larger = PairedDifference(Interval(0.008, 0.006, 0.0101, 6), 2 / 64, {})
    assert Comparison(8, "a", larger, 2 / 64).verdict == "better"


def test_over_all_values_each_seed_is_paired_with_itself():
    # Seed by seed the means over both sizes: 0.65, 0.655, 0.66 against the same.
    whole = over_all(RESULTS, "top_1", "none_frozen", score)
    assert whole.difference is not None
    assert whole.difference.interval.mean == pytest.approx(0.0, abs=1e-12)
    assert whole.difference.by_seed.keys() == {0, 1, 2}
    # What is left of the rounding is no difference.
    assert whole.difference.p_value == 1.0
    assert [each["size"] for each in whole.settings] == [8, 16]
    assert list(whole.within) == ["size 8", "size 16"]
    nothing = over_all(RESULTS, "top_1", "all_frozen", score)
    assert (nothing.difference, nothing.within, nothing.settings) == (None, {}, ())


def test_a_mean_says_what_it_was_taken_over():
    larger = lines(32, "top_1", (0.8, 0.8, 0.8))
    (whole,), within = questions([*larger, *RESULTS], "size", "top_1", "none_frozen", score)
    # Of 32 there is nothing to pair with.
    assert whole.value == (8, 16)
    assert [each.value for each in within] == [8, 16]
    assert [each.mean for each in within] == pytest.approx([0.02, -0.02])
    # Seeds 0 and 1 at one size, 2 at the other: no seed has both.
    apart = [r for r in RESULTS if (r["seed"] == 2) == (r["setting"]["size"] == 16)]
    overall, within = questions(apart, "size", "top_1", "none_frozen", score)
    assert overall == []
    assert [each.difference.interval.n for each in within] == [2, 1]


def test_without_a_test_split_the_report_warns():
    alone = [{**result, "test": None} for result in RESULTS]

    def warned(results):
        blocks = assemble(Parts("Title", ()), results, (), {}).blocks
        texts = [b.text for b in blocks if isinstance(b, Paragraph) and b.style == "warning"]
        return [text for text in texts if text.startswith("The data has no test split.")]

    assert len(warned(alone)) == 1
    assert warned(RESULTS) == []


def test_every_run_that_was_asked_for_is_counted():
    failures = [
        {"arm": "top_1", "seed": 3, "setting": {"size": 8}, "error": "diverged"},
        {"arm": "top_1", "seed": 4, "setting": {"size": 8}, "error": "diverged"},
        {"arm": "top_2", "seed": 0, "setting": {"size": 8}, "error": "no file", "skipped": True},
    ]
    context = {"asked": {"top_1": 9, "top_2": 1, "none_frozen": 6}}
    document = assemble(Parts("Title", ()), RESULTS, failures, context)
    (table,) = [
        block
        for block in document.blocks
        if isinstance(block, Table) and block.columns[1] == "asked for"
    ]
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["`top_1`", "9", "7", "2", "0"],
        ["`top_2`", "1", "0", "0", "1"],
        ["`none_frozen`", "6", "6", "0", "0"],
    ]
    bullets = [block for block in document.blocks if isinstance(block, Bullets)][-1]
    assert bullets.items == (
        "`top_1` seed 3, size 8; `top_1` seed 4, size 8: diverged",
        "`top_2` seed 0, size 8: no file",
    )


def test_help_tells_the_defaults_of_a_study_and_not_those_of_a_run(monkeypatch, capsys):
    """In a study heads on a frozen backbone have no class weights."""
    monkeypatch.setenv("COLUMNS", "300")
    main = study({"frozen": {"scenario": "backbone_frozen"}}, "Which?", "python mine.py")
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert "By default 1 in every arm" in told
    assert "cube root" not in told


def test_few_texts_have_enough_steps_in_a_study_as_in_a_run():
    settings = StudySettings(workdir="x")
    of_a_run = TrainConfig(**settings.of_a_run(), workdir="x")
    for name in ("epochs", "min_steps", "head_min_steps"):
        assert getattr(settings, name) == getattr(of_a_run, name) == getattr(TrainConfig, name)
