"""What all studies share, on the tiny BERT: arms with settings, failures, resuming."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
from conftest import without_times, write_checkpoint
from synthetic_study import line

from experiments.blocks import comparison_text, report
from experiments.compare import Comparison, compared, having, in_sequence, over_all, values_of
from experiments.conduct import Pool, conduct, train_group
from experiments.document import Bullets, Table
from experiments.protocols import check_arms, files_of, is_recipe, protocol
from experiments.statistics import Interval, PairedDifference
from experiments.study import Arm, Plan, StudySettings, arm_folder, by_seeds
from mtl_jax.config import LIMITS, TrainConfig
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
        seen[:] = [results, list(failures), context]
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


def test_a_report_is_written_after_each_group_and_when_interrupted(settings, tmp_path):
    folder, counts = tmp_path / "study", []
    seen = []
    backbones = [settings["backbone"]]
    scenarios = ["backbone_frozen", "top_9", "top_1"]
    plan = plan_of(folder, settings, backbones, scenarios, seen)

    def leave(path, results, failures, context):
        counts.append((len(results), len(failures)))
        print("a table")
        if len(counts) == 1:
            raise RuntimeError("a report that can't be drawn")
        if len(counts) == 2:
            signal.raise_signal(signal.SIGINT)
        return path / "report.html"

    plan = dataclasses.replace(plan, report=leave, report_every=0.0)
    with pytest.raises(KeyboardInterrupt):
        conduct(plan, Pool(), "the command", 0.0)
    # After the first arm, which stopped nothing; after the second; and as it was interrupted.
    assert counts == [(1, 0), (1, 1), (1, 1)]
    assert conduct(plan, Pool(), "the command", 0.0) == 1
    # The arm that failed is tried again first; then the last one is done, and that is the end.
    assert counts[3:] == [(1, 1), (2, 1)]
    assert conduct(dataclasses.replace(plan, groups=plan.groups[::2]), Pool(), "", 0.0) == 0
    assert counts[5:] == [(2, 0)]


def test_a_study_goes_on_with_other_limits_but_not_with_other_files_or_weights(settings, tmp_path):
    backbone = write_checkpoint(tmp_path / "mine", seed=3)
    folder, seen = tmp_path / "study", []

    def study_of(scenarios, files=(("rules/first.json", [["*", "frozen"]]),), **changes):
        study = StudySettings(**{**settings, **changes}, workdir=str(folder))
        plan = plan_of(folder, settings, [str(backbone)], scenarios, seen)
        record = {"study": "test", "settings": study.record()}
        return dataclasses.replace(plan, record=record, files=dict(files))

    assert conduct(study_of(["backbone_frozen"]), Pool(), "", 0.0) == 0
    (line,) = seen[0]
    config = TrainConfig(**{**settings, "backbone": str(backbone)}, workdir="")
    assert line["weights_sha256"] == Inputs(config).weights_digest
    # A record from when the limits were among the settings.
    file = folder / "config.json"
    record = json.loads(file.read_text())
    assert not record["settings"].keys() & set(LIMITS)
    record["settings"] |= {"cache_memory": 1.0, "cache_disk": 20.0, "cache_folder": None}
    file.write_text(json.dumps(record))
    assert conduct(study_of(["backbone_frozen"], cache_memory=0.5), Pool(), "", 0.0) == 0
    with pytest.raises(UserError, match=r"settings.epochs was 2, now 3"):
        conduct(study_of(["backbone_frozen"], epochs=3), Pool(), "", 0.0)
    other = (("rules/first.json", [["*", "head"]]),)
    with pytest.raises(UserError, match=r"rules/first.json is not what the study began with"):
        conduct(study_of(["backbone_frozen"], other), Pool(), "", 0.0)
    write_checkpoint(backbone, seed=4)
    assert conduct(study_of(["backbone_frozen", "top_1"]), Pool(), "", 0.0) == 1
    assert [result["arm"] for result in seen[0]] == ["backbone_frozen"]
    assert "has other weights than the runs of it that are done" in seen[1][0]["error"]
    assert "skipped" not in seen[1][0]


def test_arms_of_files(tmp_path):
    (tmp_path / "phases.json").write_text('[{"scenario": "top_1"}, {"scenario": "top_2"}]')
    (tmp_path / "rules.json").write_text('[["*", "head"]]')
    phases, rules = (str(tmp_path / f"{name}.json") for name in ("phases", "rules"))
    check_arms([phases, rules, "auto", "top_2"], layers=2)
    assert is_recipe(phases)
    assert not is_recipe(rules)
    assert protocol(phases, "/w") == {"scenario": None, "recipe": "/w/files/phases.json"}
    assert protocol(rules, "/w") == {"scenario": "/w/files/rules.json"}
    assert files_of([phases, "auto", rules]) == {
        "files/phases.json": [{"scenario": "top_1"}, {"scenario": "top_2"}],
        "files/rules.json": [["*", "head"]],
    }
    assert Path(arm_folder("w", phases, 3, {})).parent == Path("w") / "arms"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "rules.json").write_text('[["*", "head"]]')
    for names, words in (
        ([rules, str(tmp_path / "b" / "rules.json")], "are files of the same name"),
        ([phases.replace("phases", "none")], r"none.json can't be read \(No such file"),
        (["gradual"], r"unknown arm 'gradual'.*scenario \(all_frozen.*recipe \(gradual_unfree"),
        (["top_down_3"], "recipe top_down_3: phase 2: scenario 'top_3' is off"),
        (["top_3"], "scenario 'top_3' is off the backbone's 2 layers"),
    ):
        with pytest.raises(UserError, match=words):
            check_arms(names, layers=2)


def test_folders_of_arms_can_be_read_and_differ():
    assert arm_folder("w", "top_1", 3, {}) == str(Path("w") / "arms" / "top_1-seed3")
    assert arm_folder("w", "top_1", 3, {"sentences": 64}).endswith("/top_1-sentences-64-seed3")
    slash, space = (arm_folder("w", "a", 0, {"backbone": name}) for name in ("x/y", "x y"))
    assert slash != space
    assert Path(slash).parent == Path("w") / "arms"


def test_names_stand_for_recipes_or_scenarios():
    assert protocol("top_2", "w") == {"scenario": "top_2"}
    for recipe in ("gradual_unfreezing", "top_down_12", "lp_ft", "auto", "scarce_head_last"):
        assert protocol(recipe, "w") == {"scenario": None, "recipe": recipe}


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
    # Differences 0.01, 0.02, 0.03, and their negatives: one p-value, which Holm doubles.
    assert few.mean == pytest.approx(0.02)
    assert many.mean == pytest.approx(-0.02)
    assert many.difference.interval.n == 3
    (alone,) = compared(RESULTS, "size", {8: "top_1"}, "none_frozen", score)
    assert alone.p_value is not None
    assert 0 < alone.p_value < 0.5
    assert few.p_value == pytest.approx(2 * alone.p_value)
    assert many.p_value == pytest.approx(2 * alone.p_value)
    assert compared(RESULTS, "size", {8: "none_frozen"}, "none_frozen", score) == []
    ordered = compared(RESULTS, "size", arms, "none_frozen", score, in_sequence)
    assert [each.p_value for each in ordered] == pytest.approx([alone.p_value] * 2)


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
        (0.02, None, "+0.020 [−0.005, +0.045] against `b`, not told apart (one shared seed, so no"),
    ],
)
def test_a_comparison_in_words(mean, p_value, words):
    difference = PairedDifference(Interval(mean, -0.005, 0.045, 3), 0.01)
    comparison = Comparison(8, "a", difference, p_value)
    assert comparison_text(comparison, "b", "with 8").startswith(f"with 8: `a` {words}")


def test_over_all_values_each_seed_is_paired_with_itself():
    # Seed by seed the means over both sizes: 0.65, 0.655, 0.66 against the same.
    whole = over_all(RESULTS, "size", "top_1", "none_frozen", score)
    assert whole is not None
    assert whole.mean == pytest.approx(0.0, abs=1e-12)
    assert whole.difference.interval.n == 3
    ahead = over_all(having(RESULTS, size=8), "size", "top_1", "none_frozen", score)
    assert ahead is not None
    assert ahead.mean == pytest.approx(0.02)
    assert over_all(RESULTS, "size", "top_1", "all_frozen", score) is None


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
