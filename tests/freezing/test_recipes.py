"""Recipes: the phases of each by name, and those of one's own."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.phase import Phase
from mtl_jax.freezing.recipes import RECIPES, RecipeContext, phases_of, recipe_named
from mtl_jax.freezing.scenarios import scenario_rules
from tests.conftest import TASKS

SETTING = RecipeContext(num_layers=3, epochs=6.0, labels={"classifier": 90, "sentiment": 40})


def made(name, setting=SETTING):
    return recipe_named(name)(setting)


def scenarios(name, setting=SETTING):
    return [phase.scenario for phase in made(name, setting)]


def completed(file, epochs=6, setting=SETTING):
    return phases_of(TrainConfig(workdir="", recipe=str(file), epochs=epochs), setting)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gradual_unfreezing", ["backbone_frozen", "top_1", "top_2", "none_frozen"]),
        ("auto", ["backbone_frozen", "top_1", "top_2", "none_frozen"]),
        ("top_down_2", ["backbone_frozen", "top_2"]),
        ("lp_ft", ["backbone_frozen", "none_frozen"]),
        ("sequential_heads", ["sentiment_frozen", "classifier_frozen", "none_frozen"]),
        ("scarce_head_last", ["sentiment_frozen", "none_frozen"]),
    ],
)
def test_the_scenarios_of_each_recipe(name, expected):
    assert scenarios(name) == expected


@pytest.mark.parametrize("name", [*RECIPES, "top_down_1"])
def test_the_epochs_are_shared_among_the_phases(name):
    phases = made(name)
    assert {phase.epochs for phase in phases} == {6.0 / len(phases)}
    assert math.fsum(phase.epochs or 0 for phase in phases) == pytest.approx(6.0)


@pytest.mark.parametrize("name", RECIPES)
def test_each_has_its_source(name):
    assert "Source: " in str(RECIPES[name].__doc__)


def test_lp_ft_has_one_rate_after_the_linear_probe():
    config = TrainConfig(
        workdir="", recipe="lp_ft", head_learning_rate=0.5, backbone_learning_rate=2e-5
    )
    setting = dataclasses.replace(SETTING, backbone_learning_rate=config.backbone_learning_rate)
    probe, fine_tuning = phases_of(config, setting)
    assert dict(probe.learning_rates) == {"head": 0.5, "backbone": 2e-5}
    assert dict(fine_tuning.learning_rates) == {"head": 2e-5, "backbone": 2e-5}


def test_gradual_unfreezing_is_as_published():
    for phase in made("gradual_unfreezing"):
        assert phase.layer_decay == 1 / 2.6
        assert phase.schedule == "slanted_triangular"
        assert phase.restart


def test_auto_asks_for_a_gain_from_the_third_phase_on():
    phases = made("auto")
    assert [phase.requires_gain for phase in phases] == [None, None, 0.002, 0.002]
    assert {(phase.patience, phase.keep_best) for phase in phases} == {(1, True)}


@pytest.mark.parametrize(
    ("labels", "thinned", "scarce"),
    [
        ({"classifier": 90, "sentiment": 40}, (), "sentiment"),
        ({"classifier": 40, "sentiment": 90}, (), "classifier"),
        # What a study thins is the scarce task, also where it keeps more labels than the other.
        ({"classifier": 40, "sentiment": 90}, ("sentiment",), "sentiment"),
        ({"classifier": 90, "sentiment": 40}, ("classifier",), "classifier"),
        ({"classifier": 40, "sentiment": 90}, ("classifier", "sentiment"), "classifier"),
        ({"classifier": 90, "sentiment": 90}, ("classifier", "sentiment"), "sentiment"),
        ({"classifier": 90, "sentiment": 90}, (), "sentiment"),
        ({"classifier": 90, "sentiment": 90}, ("classifier",), "classifier"),
        ({"classifier": 90, "sentiment": 90}, ("sentiment",), "sentiment"),
    ],
)
def test_the_scarce_task_is_that_which_is_thinned_alone_else_that_with_fewer_labels(
    labels, thinned, scarce
):
    setting = RecipeContext(3, 6.0, labels, thinned)
    first, last = made("scarce_head_last", setting)
    assert (first.scenario, first.task_weights) == (f"{scarce}_frozen", ((scarce, 0.0),))
    assert (last.scenario, last.task_weights) == ("none_frozen", None)


def test_sequential_heads_take_the_tasks_in_the_order_given():
    context = RecipeContext(3, 6.0, {"sentiment": 40, "classifier": 90})
    phases = made("sequential_heads", context)
    assert [(phase.scenario, phase.task_weights) for phase in phases] == [
        ("classifier_frozen", (("classifier", 0.0),)),
        ("sentiment_frozen", (("sentiment", 0.0),)),
        ("none_frozen", None),
    ]
    three = RecipeContext(3, 6.0, {"topic": 9, "mood": 9, "queue": 9})
    first, second, third, last = made("sequential_heads", three)
    assert second.scenario == "topic+queue_frozen"
    assert scenario_rules(second.scenario, 3, three.tasks) == (
        ("topic/*", "frozen"),
        ("queue/*", "frozen"),
        ("mood/*", "head"),
        ("backbone/*", "backbone"),
    )
    assert second.task_weights == (("topic", 0.0), ("queue", 0.0))
    assert [phase.epochs for phase in (first, second, third, last)] == [1.5] * 4
    assert last.scenario == "none_frozen"
    (rich, _) = made("scarce_head_last", three)
    assert (rich.scenario, rich.task_weights) == ("queue_frozen", (("queue", 0.0),))


@pytest.mark.parametrize("name", ["sequential_heads", "scarce_head_last"])
def test_a_recipe_of_several_tasks_is_refused_for_one(name):
    with pytest.raises(UserError, match=f"recipe {name} needs several tasks"):
        made(name, RecipeContext(3, 6.0, {"topic": 9}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gradual", "unknown recipe 'gradual': use one of gradual_unfreezing, lp_ft"),
        ("gradual_unfreeze", "did you mean gradual_unfreezing?"),
        ("top_down_k", "did you mean top_down_1?"),
        ("top_down_", "did you mean top_down_1?"),
        ("top_2", "top_2 is a scenario, not a recipe: name it with --scenario top_2"),
        ("mood_frozen", "mood_frozen is a scenario, not a recipe"),
        ("/no/such.json", "recipe file /no/such.json is missing"),
        ("/no/such.py", "recipe file /no/such.py is not there"),
    ],
)
def test_a_recipe_that_is_not_there(name, words):
    with pytest.raises(UserError, match=words):
        recipe_named(name)


def test_a_recipe_in_a_json_file(tmp_path):
    file = tmp_path / "own.json"
    file.write_text('[{"scenario": "top_1", "steps": 3}, {"scenario": "none_frozen"}]')
    first, second = completed(file)
    assert (first.scenario, first.steps, first.epochs) == ("top_1", 3, None)
    # How long a phase is that does not say so is settled where it is laid out on the data.
    assert (second.scenario, second.epochs, second.schedule) == ("none_frozen", None, "linear")


def test_a_recipe_in_a_python_file(tmp_path):
    file = tmp_path / "own.py"
    head = "from mtl_jax.freezing.phase import Phase\n"
    file.write_text(f'{head}phases = [Phase(scenario="top_1"), Phase(scenario="top_2", steps=2)]\n')
    assert [phase.scenario for phase in completed(file)] == ["top_1", "top_2"]
    file.write_text(
        f"{head}def phases(setting):\n"
        '    return [Phase(scenario=f"top_{k + 1}") for k in range(setting.num_layers)]\n'
    )
    assert [phase.scenario for phase in completed(file)] == ["top_1", "top_2", "top_3"]


def test_rules_are_found_from_the_folder_of_the_recipe(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    (first / "rules.json").write_text('[["*", "head"]]')
    named = ["rules.json", str(second / "other.json"), "top_1"]
    (first / "own.json").write_text(json.dumps([{"scenario": name} for name in named]))
    (first / "own.py").write_text(
        f"from mtl_jax.freezing.phase import Phase\nphases = [Phase(scenario=s) for s in {named}]\n"
    )
    for folder, before in ((first, ""), (second, "../first/")):
        monkeypatch.chdir(folder)
        for recipe in ("own.json", "own.py"):
            found = scenarios(f"{before}{recipe}")
            assert scenario_rules(found[0], 3, TASKS) == (("*", "head"),)
            assert all(Path(name).is_absolute() for name in found[:2])
            assert found[1:] == named[1:]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("own.json", "[", "is not valid JSON"),
        ("own.json", '{"scenario": "top_1"}', "is not of type 'array': write a list of phases"),
        ("own.json", '[{"scenario": "a", "epochs": 1, "epochs": 2}]', "'epochs' is there twice"),
        (
            "own.json",
            '[{"scenario": "a", "learning_rates": {"head": 1, "backbone": 1, "head": 2}}]',
            "own.json is not valid JSON .'head' is there twice.: write a list of phases",
        ),
        ("own.py", "1 / 0", r"failed with ZeroDivisionError \(division by zero\)"),
        ("own.py", "raise SystemExit(3)", r"failed with SystemExit \(3\)"),
        ("own.py", "def phases(setting): return setting.depth", "failed with AttributeError"),
        (
            "own.py",
            "from mtl_jax.freezing.phase import Phase\nPhase(scenario=1)",
            "scenario is 1: give a text, a path or a list",
        ),
        ("own.py", "phase = 1", "defines no phases"),
        ("own.py", "phases = []", "defines no phases"),
        ("own.py", "phases = ['top_1']", "'top_1' is not a Phase"),
    ],
)
def test_a_file_that_holds_something_else(name, text, words, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        completed(file)


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([{"scenario": "top_1", "restart": False}], "phase 1 has no earlier schedule"),
        ([{"scenario": "top_1", "requires_gain": 0.1}], "phase 1 has no phase before it"),
    ],
)
def test_a_list_that_can_not_be_a_recipe(phases, words, tmp_path):
    file = tmp_path / "own.json"
    file.write_text(json.dumps(phases))
    with pytest.raises(UserError, match=words):
        completed(file)


def test_a_scenario_is_one_phase():
    config = TrainConfig(workdir="", scenario="top_1", epochs=5)
    assert phases_of(config, SETTING) == (Phase(scenario="top_1").completed(config),)
    assert config.name == "top_1"
    assert TrainConfig(workdir="").name == TrainConfig(workdir="").scenario == "backbone_frozen"
    recipe = TrainConfig(workdir="", recipe="lp_ft")
    assert (recipe.name, recipe.scenario) == ("lp_ft", None)
    with pytest.raises(UserError, match="--recipe lp_ft names its scenarios itself: leave --sc"):
        TrainConfig(workdir="", recipe="lp_ft", scenario="top_1")
