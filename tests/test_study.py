"""What all studies share, on the tiny BERT: arms with settings, failures, resuming."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import without_times, write_checkpoint
from synthetic_study import line

from experiments.blocks import comparison_text, report
from experiments.compare import (
    Comparison,
    compared,
    having,
    in_sequence,
    over_all,
    questions,
    values_of,
)
from experiments.conduct import Pool, conduct, train_group
from experiments.document import Bullets, Paragraph, Table
from experiments.statistics import Interval, PairedDifference
from experiments.study import Arm, Plan, StudySettings, arm_folder, by_seeds, protocol
from mtl_jax.config import TrainConfig
from mtl_jax.errors import UserError
from mtl_jax.inputs import Inputs


def test_of_a_failed_arm_only_the_words_are_kept(settings, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "config.json").write_text("{}")
    alone = TrainConfig(**settings, workdir=str(taken))
    inputs = Inputs(alone)
    (words,) = train_group([alone], inputs)
    assert isinstance(words, str)
    assert "another configuration" in words
    unknown = TrainConfig(**settings, workdir=str(tmp_path / "x"), scenario="bottom_2")
    (words,) = train_group([unknown], inputs)
    assert isinstance(words, str)
    assert words.startswith("unknown scenario 'bottom_2'")


def test_inputs_are_shared_dropped_and_not_refused_twice(settings, tmp_path):
    def run_of(seed, **changes):
        return TrainConfig(**{**settings, **changes}, workdir=str(tmp_path / "x"), seed=seed)

    pool = Pool()
    first, fewer = run_of(0), run_of(0, data=dataclasses.replace(settings["data"], max_length=3))
    inputs = pool.get(first)
    assert pool.get(run_of(1, epochs=7, head_learning_rate=0.5)) is inputs
    assert pool.get(fewer) is not inputs
    # What 3 tokens leave of a split is told once, also when its inputs are gone.
    pool.get(fewer).split("train")
    (cut,) = [note for note in pool.notes() if "cut to 3 tokens" in note]
    pool.keep_only([run_of(5)])
    assert pool.get(first) is inputs
    assert pool.notes().count(cut) == 1

    folder = tmp_path / "later"
    with pytest.raises(UserError, match="no such folder"):
        pool.get(run_of(0, backbone=str(folder)))
    write_checkpoint(folder)
    with pytest.raises(UserError, match="no such folder"):
        pool.get(run_of(0, backbone=str(folder)))
    Pool().get(run_of(0, backbone=str(folder)))


def plan_of(folder, settings, backbones, scenarios, seen):
    def arm(backbone, scenario):
        setting = {"backbone": backbone}
        config = TrainConfig(
            **{**settings, "backbone": backbone},
            workdir=arm_folder(str(folder), scenario, 0, setting),
            scenario=scenario,
        )
        return Arm(scenario, config, setting)

    def leave(path, results, failures, context):
        seen[:] = [results, failures, context]
        return path / "report.html"

    return Plan(
        workdir=str(folder),
        record={"study": "test"},
        groups=[[arm(backbone, name)] for backbone in backbones for name in scenarios],
        report=leave,
        settings={"epochs": settings["epochs"]},
        files={"rules/first.json": [["*", "frozen"]]},
        notes=["a note"],
    )


def test_a_study_skips_what_it_cannot_read_and_goes_on(settings, tmp_path, capsys):
    there = str(write_checkpoint(tmp_path / "there", seed=3))
    seen = []
    backbones = [there, str(tmp_path / "missing"), settings["backbone"]]
    scenarios = ["backbone_frozen", "top_9"]
    folder = tmp_path / "study"
    plan = plan_of(folder, settings, backbones, scenarios, seen)
    assert conduct(plan, Pool(), "the command", 0.0) == 4
    results, failures, context = seen
    assert [(r["arm"], r["seed"], r["setting"]["backbone"]) for r in results] == [
        ("backbone_frozen", 0, there),
        ("backbone_frozen", 0, settings["backbone"]),
    ]
    assert list(results[0])[:3] == ["arm", "seed", "setting"]
    told = [(f["arm"], f["setting"]["backbone"], f.get("skipped", False)) for f in failures]
    assert told == [
        ("top_9", there, False),
        ("backbone_frozen", backbones[1], True),
        ("top_9", backbones[1], True),
        ("top_9", settings["backbone"], False),
    ]
    assert context["asked"] == {"backbone_frozen": 3, "top_9": 3}
    assert context["seeds"] == [0]
    assert json.loads((folder / "rules" / "first.json").read_text()) == [["*", "frozen"]]
    said = capsys.readouterr().err
    assert said.startswith("a note\narm 1 of 6: backbone_frozen, seed 0, backbone ")

    # With the folder there at last, only what is lacking is trained.
    write_checkpoint(tmp_path / "missing", seed=4)
    plan = plan_of(folder, settings, backbones, scenarios[:1], seen)
    assert conduct(plan, Pool(), "the command", 0.0) == 0
    assert "arm 2 of 3" in (said := capsys.readouterr().err)
    assert "arm 1 of 3" not in said
    assert "arm 3 of 3" not in said
    assert [r["setting"]["backbone"] for r in seen[0]] == [there, backbones[2], backbones[1]]
    assert [without_times(r) for r in seen[0][:2]] == [without_times(r) for r in results]

    other = dataclasses.replace(plan, record={"study": "another"})
    with pytest.raises(UserError, match="another configuration"):
        conduct(other, Pool(), "the command", 0.0)
    none = plan_of(tmp_path / "none", settings, backbones[:1], ["top_9"], seen)
    with pytest.raises(UserError, match=r"no arm .* could be trained; the first failed with: scen"):
        conduct(none, Pool(), "the command", 0.0)


def test_folders_of_arms_can_be_read_and_differ():
    assert arm_folder("w", "top_1", 3, {}) == str(Path("w") / "arms" / "top_1-seed3")
    assert arm_folder("w", "top_1", 3, {"sentences": 64}).endswith("/top_1-sentences-64-seed3")
    slash, space = (arm_folder("w", "a", 0, {"backbone": name}) for name in ("x/y", "x y"))
    assert slash != space
    assert Path(slash).parent == Path("w") / "arms"


def test_names_stand_for_recipes_or_scenarios():
    assert protocol("top_2") == {"scenario": "top_2"}
    for recipe in ("gradual_unfreezing", "top_down_12", "lp_ft", "auto", "scarce_head_last"):
        assert protocol(recipe) == {"scenario": None, "recipe": recipe}


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
    # Differences 0.01, 0.02, 0.03, and -0.01, -0.02, -0.03: one statistic in every pattern, so
    # that the family is as sure as either alone, 2/2^3.
    assert few.mean == pytest.approx(0.02)
    assert many.mean == pytest.approx(-0.02)
    assert many.difference.interval.n == 3
    (alone,) = compared(RESULTS, "size", {8: "top_1"}, "none_frozen", score)
    assert (few.p_value, many.p_value, alone.p_value) == (0.25, 0.25, 0.25)
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
            "+0.020 [−0.005, +0.045] against `b`, not told apart (corrected p = 0.050).",
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
        blocks = report("Title", (), (), results, (), {}).blocks
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
    document = report("Title", (), (), RESULTS, failures, context)
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
    (bullets,) = [block for block in document.blocks if isinstance(block, Bullets)]
    assert bullets.items == (
        "`top_1` seed 3, size 8; `top_1` seed 4, size 8: diverged",
        "`top_2` seed 0, size 8: no file",
    )
