"""Arms by name: scenarios, recipes, and files of either."""

from pathlib import Path

import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.recipes import RECIPES
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.studies.arm_specs import (
    check_arms,
    files_of,
    freezes_trained_head,
    is_recipe,
    protocol,
)
from mtl_jax.studies.builtin.backbones import Backbones
from mtl_jax.studies.builtin.freezing import Freezing
from mtl_jax.studies.builtin.unfreezing import Unfreezing
from mtl_jax.studies.settings import arm_folder
from mtl_jax.training.inputs import Inputs
from tests.conftest import TASKS


@pytest.fixture(scope="module")
def inputs(shared_settings):
    return Inputs(TrainConfig(**shared_settings, workdir=""))


def test_arms_of_files(tmp_path):
    (tmp_path / "phases.json").write_text('[{"scenario": "top_1"}, {"scenario": "top_2"}]')
    (tmp_path / "rules.json").write_text('[["*", "head"]]')
    phases, rules = (str(tmp_path / f"{name}.json") for name in ("phases", "rules"))
    check_arms([phases, rules, "auto", "top_2"], layers=2, tasks=TASKS)
    assert is_recipe(phases)
    assert not is_recipe(rules)
    assert protocol(phases, "/w") == {"scenario": None, "recipe": "/w/files/phases.json"}
    assert protocol(rules, "/w") == {"scenario": "/w/files/rules.json", "hold_frozen_heads": 0.0}
    assert files_of([phases, "auto", rules]) == {
        "files/phases.json": [{"scenario": "top_1"}, {"scenario": "top_2"}],
        "files/rules.json": [["*", "head"]],
    }
    assert Path(arm_folder("w", phases, 3, {})).parent == Path("w") / "arms"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "rules.json").write_text('[["*", "head"]]')
    for names, words in (
        ([rules, str(tmp_path / "b" / "rules.json")], "are files of the same name"),
        ([phases.replace("phases", "none")], "none.json is missing"),
        (["gradual"], r"unknown arm 'gradual'.*scenario \(all_frozen.*recipe \(gradual_unfree"),
        (["top_down_3"], "recipe top_down_3: phase 2: scenario 'top_3' does not fit"),
        (["top_3"], "scenario 'top_3' does not fit the backbone's 2 layers"),
    ):
        with pytest.raises(UserError, match=words):
            check_arms(names, layers=2, tasks=TASKS)


def test_a_recipe_with_rules_of_its_own_is_refused_before_a_study_copies_half_of_it(tmp_path):
    (tmp_path / "rules.json").write_text('[["*", "head"]]')
    recipe = tmp_path / "recipe.json"
    recipe.write_text('[{"scenario": "top_1"}, {"scenario": "rules.json"}]')
    words = rf"recipe {recipe}: phase 2: its rules are in {tmp_path / 'rules.json'}, of which a stu"
    with pytest.raises(UserError, match=words):
        check_arms([str(recipe)], layers=2, tasks=TASKS)


def test_names_stand_for_recipes_or_scenarios():
    assert protocol("top_2", "w") == {"scenario": "top_2", "hold_frozen_heads": 0.0}
    for recipe in ("gradual_unfreezing", "top_down_12", "lp_ft", "auto", "scarce_head_last"):
        named = {"scenario": None, "recipe": recipe, "hold_frozen_heads": 0.0}
        assert protocol(recipe, "w") == named
    assert protocol("sequential_heads", "w") == {"scenario": None, "recipe": "sequential_heads"}
    decay = {"scenario": "none_frozen", "layer_decay": 0.8, "hold_frozen_heads": 0.0}
    assert protocol("layer_decay", "w") == decay


@pytest.mark.parametrize("recipe", [*RECIPES, "top_down_2"])
def test_which_recipes_freeze_a_trained_head_is_what_their_phases_do(recipe, settings, inputs):
    config = TrainConfig(**settings | {"epochs": 6}, workdir="", recipe=recipe)
    assert freezes_trained_head(recipe) == any(
        plan.guarded for plan in PhaseRun(config, inputs).plans
    )


@pytest.mark.parametrize(
    ("study", "changes", "words"),
    [
        (Freezing, {}, "no arm freezes such a head: add one that does, such as sequential_heads"),
        (Unfreezing, {"arms": ("top_1", "lp_ft")}, "no arm freezes such a head: add one that does"),
        (Backbones, {}, "no arm freezes such a head: add one that does, such as sequential_heads"),
    ],
)
def test_what_no_arm_can_hold_is_refused(study, changes, words, settings, tmp_path):
    shared = {**settings, "workdir": str(tmp_path / "study"), "hold_frozen_heads": 2.0, **changes}
    with pytest.raises(UserError, match=f"--hold-frozen-heads 2 is for a head that an .*{words}"):
        list(study(**shared).groups(*((3, 96) if study is Unfreezing else ())))


def test_heads_are_held_in_the_arms_that_can_have_it(settings, tmp_path):
    shared = {
        **settings,
        "workdir": str(tmp_path / "study"),
        "hold_frozen_heads": 2.0,
        "seeds": (0,),
    }
    arms = ("backbone_frozen", "at_once", "only_layer_0", "lp_ft", "sequential_heads")
    [groups, others] = [
        list(Unfreezing(**shared, sizes=(64,), arms=arms).groups(3, 96)),
        list(Backbones(**shared, arms=(arms[0], arms[-1])).groups()),
    ]
    does = {(arm.name, arm.config.hold_frozen_heads) for group in groups for arm in group}
    assert does == {(arm, 2.0 if arm == arms[-1] else 0.0) for arm in arms}
    assert {(arm.name, arm.config.hold_frozen_heads) for group in others for arm in group} == {
        (arms[0], 0.0),
        (arms[-1], 2.0),
    }
