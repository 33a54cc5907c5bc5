"""What the name of a study's arm stands for: a scenario, a recipe, or settings with a name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.config.scenario import is_inline
from mtl_jax.core.errors import UserError, no_trained_head
from mtl_jax.core.json_files import read_json
from mtl_jax.core.paths import expanded
from mtl_jax.freezing.recipes import HOWARD_RUDER, RECIPES, RecipeContext, recipe_named
from mtl_jax.freezing.scenarios import (
    close_names,
    is_scenario_name,
    names_in_words,
    scenario_rules,
)

# Of a run that has no head to hold, where --hold-frozen-heads is meant for other arms of its study.
NOTHING_HELD = {"hold_frozen_heads": 0.0}
# Controls of what freezing lower layers does: full fine-tuning in which they move less. The decay
# is that of ELECTRA (Clark et al. 2020, arXiv:2003.10555, appendix B); ``at_once`` has gradual
# unfreezing's rates and schedule, and differs from it in nothing but its phases.
CONTROLS: Mapping[str, Mapping[str, Any]] = {
    "layer_decay": {"scenario": "none_frozen", "layer_decay": 0.8},
    "at_once": {"scenario": "none_frozen", **HOWARD_RUDER},
}

EQUAL_COST = "_equal_cost"
"""What the name of an arm ends in that has as many more passes as its cheaper updates allow."""


def at_equal_updates(name: str) -> str:
    """The arm that an arm at equal cost has the protocol of; any other is its own."""
    return name.removesuffix(EQUAL_COST)


def is_recipe(name: str) -> bool:
    """Whether an arm is a recipe, and not one scenario from start to end."""
    if _is_file(name):
        return _holds_phases(name)
    return name in RECIPES or re.fullmatch(r"top_down_\d+", name) is not None


def protocol(name: str, workdir: str) -> dict[str, Any]:
    """The fields of a ``TrainConfig`` that an arm's name stands for: a recipe, or a scenario.

    Args:
        name: Of the arm; of a ``.json`` file, the copy in the study's folder is meant.
        workdir: Of the study.
    """
    if name in CONTROLS:
        return {**CONTROLS[name], **NOTHING_HELD}
    kept = in_study(workdir, kept_as(name)) if _is_file(name) else name
    what = {"scenario": None, "recipe": kept} if is_recipe(name) else {"scenario": kept}
    return what if freezes_trained_head(name) else what | NOTHING_HELD


def freezes_trained_head(name: str) -> bool:
    """Whether an arm may freeze a head that an earlier phase of it has trained.

    Of a file's phases this is known when they are laid out on the backbone.
    """
    return is_recipe(name) and (name == "sequential_heads" or _is_file(name))


def refuse_nothing_held(weight: float, names: Sequence[str]) -> None:
    """Refuses a ``--hold-frozen-heads`` that none of the arms has a head for.

    Raises:
        UserError: It is not 0, and none of the arms freezes a trained head.
    """
    if weight and not any(map(freezes_trained_head, names)):
        raise no_trained_head(weight, "no arm freezes such a head: add one that does")


def in_study(workdir: str, file: str) -> str:
    """A file that a study leaves for its arms, by a path that holds from any folder."""
    return str(expanded(workdir).absolute() / file)


def files_of(names: Sequence[str]) -> dict[str, Any]:
    """What the ``.json`` files among checked arms hold, by where the study keeps its copy."""
    files = (name for name in names if _is_file(name))
    return {kept_as(file): _content(file) for file in files}


def kept_as(file: str) -> str:
    """Where in a study's folder the copy of a ``.json`` file is."""
    return f"files/{Path(file).name}"


def check_arms(
    names: Sequence[str], layers: int, tasks: Sequence[str], own: Sequence[str] = ()
) -> None:
    """Refuses, before any is trained, an arm that there is not for so many layers.

    Args:
        names: The arms, but for those of the study's own.
        layers: Of the backbone.
        tasks: The names of the tasks.
        own: What the study's own are called, for the message.

    Raises:
        UserError: It is neither a scenario nor a recipe, or does not fit the backbone's layers.
    """
    copies: dict[str, str] = {}
    for name in names:
        if _is_file(name) and copies.setdefault(kept_as(name), name) != name:
            raise UserError(
                f"arms {copies[kept_as(name)]} and {name} are files of the same name: rename one"
            )
        if name in CONTROLS:
            continue
        if is_recipe(name):
            _check_recipe(name, layers, tasks)
        elif _is_scenario(name, tasks):
            scenario_rules(name, layers, tasks)
        else:
            raise _unknown(name, layers, tasks, own)


def _is_scenario(name: str, tasks: Sequence[str]) -> bool:
    return is_scenario_name(name, tasks) or _is_file(name) or is_inline(name)


def _check_recipe(name: str, layers: int, tasks: Sequence[str]) -> None:
    context = RecipeContext(num_layers=layers, epochs=1.0, labels=dict.fromkeys(tasks, 1))
    for number, phase in enumerate(recipe_named(name)(context), start=1):
        try:
            scenario_rules(phase.scenario, layers, tasks)
        except UserError as error:
            raise UserError(f"recipe {name}: phase {number}: {error}") from error
        if _is_file(phase.scenario):
            raise UserError(
                f"recipe {name}: phase {number}: its rules are in {phase.scenario}, of which a "
                "study keeps no copy: name a scenario, or use mtl_jax train with this --recipe"
            )


def _unknown(name: str, layers: int, tasks: Sequence[str], own: Sequence[str]) -> UserError:
    names = [*own, *CONTROLS, *close_names(tasks), *RECIPES, "top_down_1"]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    others = "".join(f"{each}, " for each in (*own, *CONTROLS))
    return UserError(
        f"unknown arm {name!r}: {hint}use {others}a scenario ({names_in_words(tasks, layers)}), "
        f"a recipe ({', '.join(RECIPES)}, or top_down_k), or a .json file of rules or phases"
    )


def _is_file(name: str) -> bool:
    return name.endswith(".json") and not is_inline(name)


def _holds_phases(file: str) -> bool:
    """Whether a file holds phases: it is for others to say why it can't be read."""
    try:
        content = _content(file)
    except UserError:
        return False
    return isinstance(content, list) and any(isinstance(each, Mapping) for each in content)


def _content(file: str) -> Any:
    return read_json(expanded(file), {}, "write a list of rules or of phases")
