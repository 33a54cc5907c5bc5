"""Arms by name: scenarios, recipes, and files of either."""

from pathlib import Path

import pytest

from experiments.protocols import check_arms, files_of, is_recipe, protocol
from experiments.study import arm_folder
from mtl_jax.errors import UserError


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


def test_names_stand_for_recipes_or_scenarios():
    assert protocol("top_2", "w") == {"scenario": "top_2"}
    for recipe in ("gradual_unfreezing", "top_down_12", "lp_ft", "auto", "scarce_head_last"):
        assert protocol(recipe, "w") == {"scenario": None, "recipe": recipe}
