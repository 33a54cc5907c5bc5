"""Arms at their best: what is searched, within which budget, what is chosen, and after a kill."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from mtl_jax.cli.commands import run as cli
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.studies.budget import Budget
from mtl_jax.studies.builtin.freezing import Freezing, run
from mtl_jax.studies.settings import Arm
from mtl_jax.studies.tuning import search
from mtl_jax.studies.tuning.record import Trial, TuningRecord, applied, chosen_of
from mtl_jax.studies.tuning.space import space_of
from mtl_jax.studies.tuning.sweep import shares
from mtl_jax.studies.tuning.tuned import tuned
from mtl_jax.training.evaluator import Evaluator
from mtl_jax.training.inputs import Inputs


@pytest.fixture(scope="module")
def inputs(small_settings):
    return Inputs(TrainConfig(**small_settings, workdir="unused"))


def test_budgets():
    assert Budget.parse("12") == Budget(trials=12)
    assert Budget.parse("3e15FLOPs") == Budget.parse("3E15 flops") == Budget(flops=3e15)
    assert [str(Budget.parse(words)) for words in ("1", "2", "3e15flops")] == [
        *("1 trial", "2 trials", "3e+15 FLOPs")
    ]
    for words in ("0", "1.5", "many", "-3", "1e3e", "0flops", "."):
        with pytest.raises(UserError, match=r"--tune .*write a number of trials"):
            Budget.parse(words)
    with pytest.raises(UserError, match="--tune x: write a number of trials"):
        Freezing(workdir="x", tune="x")
    assert [Budget(trials=2).has_room(n, 1e9, 1e9) for n in (1, 2)] == [True, False]
    # The first trial has room however small the budget, others where they fit in whole.
    flops = Budget(flops=10.0)
    assert [flops.has_room(*each) for each in ((0, 0, 99), (1, 5, 5), (1, 5, 6))] == [
        *(True, True, False)
    ]


def test_what_is_searched_follows_from_what_trains(small_settings, inputs):
    settings = {**small_settings, "epochs": None, "head_learning_rate": None}

    def space(**own):
        return space_of(PhaseRun(TrainConfig(**{**settings, **own}, workdir="w"), inputs))

    def fields(**own):
        return [rate.field.removesuffix("_learning_rate") for rate in space(**own).rates]

    assert fields(scenario="backbone_frozen") == ["head"]
    assert fields(scenario="none_frozen") == ["head", "backbone"]
    assert fields(scenario="lora_2") == ["head", "lora"]
    # The rate of its first phase's heads, and the one of all in its second.
    assert fields(recipe="lp_ft") == ["head", "backbone"]
    assert fields(scenario="all_frozen") == []
    assert space(scenario="backbone_frozen").heads_alone
    assert not space(recipe="lp_ft").heads_alone
    assert not space(scenario="backbone_frozen", prefix_cache=False).heads_alone
    assert list(space(scenario="none_frozen").lengths.values()) == [
        {"epochs": 3, "min_steps": 150, "head_min_steps": 5000},
        {"epochs": 2, "min_steps": 75, "head_min_steps": 2500},
        {"epochs": 6, "min_steps": 300, "head_min_steps": 10000},
    ]
    assert [each["epochs"] for each in space(scenario="backbone_frozen").lengths.values()] == [
        *(15, 8, 30)
    ]
    # What is stated has no steps at least; one pass is not halved.
    (one, two) = space(scenario="none_frozen", epochs=1).lengths.values()
    assert one == {"epochs": 1, "min_steps": 0, "head_min_steps": 0}
    assert two["epochs"] == 2
    heads = space(scenario="backbone_frozen")
    assert [[count for _, count in shares(heads, n)] for n in (3, 8, 13)] == [
        *([3], [4, 4], [5, 4, 4])
    ]


def trial(rate, score, epochs=3, **other):
    return Trial({"head_learning_rate": rate}, {"epochs": epochs}, score, [], 10.0, **other)


def test_the_best_whole_trial_is_chosen_and_what_may_be_wrong_with_it_told():
    trials = [trial(1e-3, 0.6), trial(1e-2, 0.7, 6), trial(3e-3, 0.7), trial(1e-1, None)]
    trials.append(trial(5e-3, 0.9, pruned=True))
    assert chosen_of(trials) == {
        "chosen": {"head_learning_rate": 1e-2, "epochs": 6},
        "validation": 0.7,
        "trials": 5,
        "flops": 50.0,
        "at_edge": [],
        "longest": True,
    }
    found = chosen_of([*trials[:2], trial(2e-3, 0.5)])
    assert (found["at_edge"], found["longest"]) == (["head_learning_rate"], True)
    # Either of two is at the edge.
    assert chosen_of(trials[:2])["at_edge"] == chosen_of(trials[:1])["at_edge"] == []
    assert chosen_of([trial(1e-1, None)])["chosen"] == {}


@pytest.fixture(scope="module")
def study(small_settings, tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("study"))
    limits = {"max_train_examples": 64, "max_test_examples": 20}
    data = dataclasses.replace(small_settings["data"], **limits)
    own = {"workdir": workdir, "seeds": (2, 0), "data": data, "tune": "5", "epochs": 2}
    arms = ("all_frozen", "backbone_frozen", "lp_ft")
    return Freezing(**{**small_settings, **own}, arms=arms)


def test_a_study_trains_every_seed_with_what_was_chosen_on_validation(study, monkeypatch):
    read, measure = [], Evaluator.measure

    def watched(self, params, split, *rest):
        read.append(len(split.texts))
        return measure(self, params, split, *rest)

    monkeypatch.setattr(Evaluator, "measure", watched)
    assert run(study, "the command") == 0
    folder = Path(study.workdir)
    trials = read_lines(folder / "tuning.jsonl")
    assert [(line["arm"], line["seed"], line["trial"]) for line in trials] == [
        (arm, 2, number) for arm in ("backbone_frozen", "lp_ft") for number in range(5)
    ]
    assert {tuple(line["rates"]) for line in trials[5:]} == {
        ("head_learning_rate", "backbone_learning_rate")
    }
    # The first trial of a search is what the arm would have been without one.
    assert trials[5]["rates"] == {"head_learning_rate": 0.01, "backbone_learning_rate": 0.01}
    assert trials[5]["length"]["epochs"] == 2
    results = read_lines(folder / "results.jsonl")
    assert [line["seed"] for line in results] == [2, 2, 2, 0, 0, 0]
    for line in results:
        own = [each for each in trials if each["arm"] == line["arm"]]
        config = json.loads(
            (folder / "arms" / f"{line['arm']}-seed{line['seed']}" / "config.json").read_text()
        )
        if not own:
            assert line["tuned"]["chosen"] == {}
            continue
        best = max((each for each in own if not each["pruned"]), key=lambda t: t["validation"])
        chosen = {**best["rates"], **best["length"]}
        assert line["tuned"]["chosen"] == chosen
        assert line["tuned"]["budget"] == "5 trials"
        assert line["tuned"]["flops"] == sum(each["flops"] for each in own)
        assert {name: config["settings"][name] for name in chosen} == chosen
        assert all(each["flops"] > 0 for each in own)
    # The same run was the trial, with the same seed, data and settings.
    (line,) = [each for each in results if each["arm"] == "lp_ft" and each["seed"] == 2]
    of_phases = line["curve"]
    best = line["tuned"]["validation"]
    assert best == pytest.approx(
        max(
            sum(task["macro_f1"] for task in each["validation"].values()) / 2 for each in of_phases
        ),
        abs=1e-12,
    )
    # The 20 texts to test are measured once for each of six runs, and for no trial.
    assert read.count(20) == 6
    assert not list((folder / "tuning").glob("*/trial-*"))
    again = read_lines(folder / "tuning.jsonl")
    assert run(study, "the command") == 0
    assert read_lines(folder / "tuning.jsonl") == again


def test_a_search_that_is_cut_short_goes_on_to_the_same_choice(
    small_settings, inputs, tmp_path, monkeypatch
):
    settings = {**small_settings, "epochs": 2}

    def arm(folder):
        workdir = str(tmp_path / folder / "arms" / "none_frozen-seed0")
        return Arm("none_frozen", TrainConfig(**settings, workdir=workdir, scenario="none_frozen"))

    budget = Budget(trials=4)
    (whole,) = tuned([arm("whole")], inputs, tmp_path / "whole", budget)
    cut_record = TuningRecord(tmp_path / "cut", arm("cut"))
    # Killed before the second outcome is recorded, and after the third is, of which Optuna has not
    # been told then.
    for place, name, recorded in ((TuningRecord, "add", 1), (search, "_tell", 3)):
        goes_on = getattr(place, name)

        def killed(*args, goes_on=goes_on, recorded=recorded):
            if len(cut_record.trials()) == recorded:
                raise KeyboardInterrupt
            goes_on(*args)

        monkeypatch.setattr(place, name, killed)
        with pytest.raises(KeyboardInterrupt):
            tuned([arm("cut")], inputs, tmp_path / "cut", budget)
        monkeypatch.undo()
    journal = tmp_path / "cut" / "tuning" / "none_frozen" / "optuna.log"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor')
    (cut,) = tuned([arm("cut")], inputs, tmp_path / "cut", budget)
    kept = TuningRecord(tmp_path / "whole", arm("whole")).trials()
    assert cut_record.trials() == kept
    assert len(kept) == 4
    assert whole.tuned == cut.tuned
    assert applied(arm("cut"), cut.tuned).config == cut.config
    assert applied(arm("cut"), None).config == arm("cut").config


def test_a_sweep_of_which_a_kill_has_left_some_trials_is_made_whole(
    small_settings, inputs, tmp_path
):
    workdir = str(tmp_path / "arms" / "backbone_frozen-seed0")
    settings = {**small_settings, "epochs": 2, "workdir": workdir, "scenario": "backbone_frozen"}
    arm, budget = Arm("backbone_frozen", TrainConfig(**settings)), Budget(trials=3)
    (whole,) = tuned([arm], inputs, tmp_path, budget)
    folder = tmp_path / "tuning" / "backbone_frozen"
    trials = (folder / "trials.jsonl").read_bytes()
    (folder / "trials.jsonl").write_bytes(trials.splitlines(keepends=True)[0])
    (folder / "chosen.json").unlink()
    (again,) = tuned([arm], inputs, tmp_path, budget)
    assert (folder / "trials.jsonl").read_bytes() == trials
    assert again == whole


def test_a_run_by_itself_is_tuned_once(small_flags, tmp_path, capsys):
    flags = [f for f in small_flags if not f.startswith("--head-learning-rate")]
    command = ["train", *flags, "--epochs=1", "--tune=2", f"--workdir={tmp_path / 'run'}"]
    assert cli(command) == 0
    assert "tuning backbone_frozen on validation: 2 trials" in capsys.readouterr().err
    (chosen,) = (tmp_path / "run" / "tuning").rglob("chosen.json")
    found = json.loads(chosen.read_text())
    assert found["trials"] == 2
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert {name: settings[name] for name in found["chosen"]} == found["chosen"]
    assert cli(command) == 0
    said = capsys.readouterr().err
    assert "is done" in said
    assert "tuning backbone_frozen" not in said
    # One that was begun with other rates is not tuned behind its back.
    shutil.rmtree(tmp_path / "run" / "tuning")
    assert cli(command) == 2
    assert "has a run that was begun without --tune" in capsys.readouterr().err
    assert cli([*command[:-1], f"--workdir={tmp_path / 'other'}", "--tune=x"]) == 2
    assert "--tune x: write a number of trials" in capsys.readouterr().err
