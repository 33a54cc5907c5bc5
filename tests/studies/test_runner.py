"""Studies on the tiny BERT: shared inputs, failures, resuming, reports on the way."""

import dataclasses
import json
import os
import signal

import pytest

from mtl_jax.config.train import LIMITS, TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.studies.builtin import (
    backbones,
    freezing,
    heads,
    quality,
    scarce_task,
    unfreezing,
)
from mtl_jax.studies.inputs_pool import InputsPool
from mtl_jax.studies.runner import conduct, train_group
from mtl_jax.studies.settings import Arm, Plan, StudySettings, arm_folder
from mtl_jax.training.inputs import Inputs
from tests.conftest import SMALL, write_checkpoint, write_record
from tests.faults.runs import without_times


@pytest.fixture
def settings(small_settings):
    """Of one layer: what is tried here does not depend on how many there are."""
    return dict(small_settings)


def test_of_a_failed_arm_only_the_words_are_kept(settings, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    write_record(taken, {})
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

    pool = InputsPool()
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
    write_checkpoint(folder, SMALL)
    with pytest.raises(UserError, match="no such folder"):
        pool.get(run_of(0, backbone=str(folder)))
    InputsPool().get(run_of(0, backbone=str(folder)))


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
    there = str(write_checkpoint(tmp_path / "there", SMALL, seed=3))
    seen = []
    backbones = [there, str(tmp_path / "missing"), settings["backbone"]]
    scenarios = ["backbone_frozen", "top_9"]
    folder = tmp_path / "study"
    plan = plan_of(folder, settings, backbones, scenarios, seen)
    assert conduct(plan, InputsPool(), "the command", 0.0) == 4
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
    write_checkpoint(tmp_path / "missing", SMALL, seed=4)
    plan = plan_of(folder, settings, backbones, scenarios[:1], seen)
    assert conduct(plan, InputsPool(), "the command", 0.0) == 0
    assert "arm 2 of 3" in (said := capsys.readouterr().err)
    assert "arm 1 of 3" not in said
    assert "arm 3 of 3" not in said
    assert [r["setting"]["backbone"] for r in seen[0]] == [there, backbones[2], backbones[1]]
    assert [without_times(r) for r in seen[0][:2]] == [without_times(r) for r in results]

    other = dataclasses.replace(plan, record={"study": "another"})
    with pytest.raises(UserError, match="another configuration"):
        conduct(other, InputsPool(), "the command", 0.0)
    none = plan_of(tmp_path / "none", settings, backbones[:1], ["top_9"], seen)
    with pytest.raises(UserError, match=r"no arm .* could be trained; the first failed with: scen"):
        conduct(none, InputsPool(), "the command", 0.0)


def test_a_study_ends_where_an_arm_cannot_be_saved_and_goes_on_when_it_can(
    settings, tmp_path, small_disk
):
    disk, seen = small_disk(4), []
    filler = disk / "filler"
    free = os.statvfs(disk)
    # The first checkpoint takes more than what is left beside what the study itself writes.
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - 300 * 2**10))
    folder = disk / "study"
    plan = plan_of(folder, settings, [settings["backbone"]], ["none_frozen", "top_1"], seen)
    with pytest.raises(UserError, match=r"could not be saved in .*/none_frozen-"):
        conduct(plan, InputsPool(), "the command", 0.0)
    assert seen == []
    (begun,) = (folder / "arms").iterdir()
    assert begun.name.startswith("none_frozen-")
    filler.unlink()
    assert conduct(plan, InputsPool(), "the command", 0.0) == 0
    assert [result["arm"] for result in seen[0]] == ["none_frozen", "top_1"]


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
        conduct(plan, InputsPool(), "the command", 0.0)
    # After the first arm, which stopped nothing; after the second; and as it was interrupted.
    assert counts == [(1, 0), (1, 1), (1, 1)]
    assert conduct(plan, InputsPool(), "the command", 0.0) == 1
    # The arm that failed is tried again first; then the last one is done, and that is the end.
    assert counts[3:] == [(1, 1), (2, 1)]
    assert conduct(dataclasses.replace(plan, groups=plan.groups[::2]), InputsPool(), "", 0.0) == 0
    assert counts[5:] == [(2, 0)]


def test_a_study_goes_on_with_other_limits_but_not_with_other_files_or_weights(settings, tmp_path):
    backbone = write_checkpoint(tmp_path / "mine", SMALL, seed=3)
    folder, seen = tmp_path / "study", []

    def study_of(scenarios, files=(("rules/first.json", [["*", "frozen"]]),), **changes):
        study = StudySettings(**{**settings, **changes}, workdir=str(folder))
        plan = plan_of(folder, settings, [str(backbone)], scenarios, seen)
        record = {"study": "test", "settings": study.record()}
        return dataclasses.replace(plan, record=record, files=dict(files))

    assert conduct(study_of(["backbone_frozen"]), InputsPool(), "", 0.0) == 0
    (line,) = seen[0]
    config = TrainConfig(**{**settings, "backbone": str(backbone)}, workdir="")
    assert line["weights_sha256"] == Inputs(config).weights_digest
    # A record from when the limits were among the settings.
    file = folder / "config.json"
    record = json.loads(file.read_text())
    assert not record["settings"].keys() & set(LIMITS)
    record["settings"] |= {"cache_size": 20.0, "cache_folder": None}
    write_record(folder, record)
    assert conduct(study_of(["backbone_frozen"], cache_size=0.5), InputsPool(), "", 0.0) == 0
    with pytest.raises(UserError, match=r"\(epochs was 2, now 3\)"):
        conduct(study_of(["backbone_frozen"], epochs=3), InputsPool(), "", 0.0)
    other = (("rules/first.json", [["*", "head"]]),)
    with pytest.raises(UserError, match=r"rules/first.json is not what the study began with"):
        conduct(study_of(["backbone_frozen"], other), InputsPool(), "", 0.0)
    write_checkpoint(backbone, SMALL, seed=4)
    assert conduct(study_of(["backbone_frozen", "top_1"]), InputsPool(), "", 0.0) == 1
    assert [result["arm"] for result in seen[0]] == ["backbone_frozen"]
    assert "has other weights than the runs of it that are done" in seen[1][0]["error"]
    assert "skipped" not in seen[1][0]


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        (freezing.Freezing, freezing.run),
        (backbones.Backbones, backbones.run),
        (heads.Heads, heads.run),
        (quality.Quality, quality.run),
        (scarce_task.ScarceTask, scarce_task.run),
        (unfreezing.Unfreezing, unfreezing.run),
    ],
)
def test_an_error_of_the_data_ends_a_study_before_its_first_arm(
    kind, run, settings, tmp_path, capsys
):
    test_file = tmp_path / "test.csv"
    test_file.write_text("text,topic,mood\nthe film was good,radio,pos\n")
    data = dataclasses.replace(settings["data"], test_file=str(test_file))
    study = kind(**settings | {"data": data}, workdir=str(tmp_path / "study"))
    with pytest.raises(
        UserError, match=r"test\.csv, line 2: classifier label 'radio' is not among"
    ):
        run(study, "the command")
    assert not (tmp_path / "study").exists()
    assert capsys.readouterr().err == ""


def test_the_data_is_told_before_the_first_arm(shared_settings, tmp_path):
    folders = (shared_settings["backbone"],)
    study = backbones.Backbones(
        **shared_settings, backbones=folders, workdir=str(tmp_path), seeds=(0,)
    )
    for plan in (
        backbones.plan_of(study, InputsPool()),
        freezing.plan_of(freezing_of(study), InputsPool()),
    ):
        told = [
            note for note in plan.notes if "classes, texts in train / validation / test" in note
        ]
        assert [note.partition(":")[0] for note in told] == ["classifier", "sentiment"]
        assert any(note.startswith("warning: the validation split is small") for note in plan.notes)


def freezing_of(study):
    return freezing.Freezing(**study.of_a_run(), workdir=study.workdir, seeds=study.seeds)
