"""Recipes: lists of phases by name, and those of one's own from a file.

Every recipe shares ``--epochs`` evenly among its phases. A recipe has so read as many texts
as a scenario of the same number of epochs, but for three things: ``auto`` may end early, an
epoch of a phase in which one task alone counts has the texts with a label of that task only,
and a phase has one step at least, so that more is read where there are fewer steps than phases.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.config.scenario import is_inline
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_json
from mtl_jax.core.paths import expanded
from mtl_jax.freezing.phase import Phase, phases_from
from mtl_jax.freezing.scenarios import is_scenario

# Howard & Ruder 2018 (arXiv:1801.06146), section 3.2: "we empirically found it to work well".
# Whatever is compared with gradual unfreezing needs them, too, or the rates are what differs.
HOWARD_RUDER: Mapping[str, Any] = {"layer_decay": 1 / 2.6, "schedule": "slanted_triangular"}
# What a phase of ``auto`` has to add to the mean macro-F1 for the next one to begin.
_PAYS = 0.002


@dataclasses.dataclass(frozen=True)
class RecipeContext:
    """What the phases of a recipe may depend on.

        def phases(context: mtl.RecipeContext) -> list[mtl.Phase]:
            half = context.epochs / 2
            top = f"top_{context.num_layers // 2}"
            return [mtl.Phase(scenario="backbone_frozen", epochs=half),
                    mtl.Phase(scenario=top, epochs=half)]

    A file with such a function is used as ``--recipe mine.py``.

    Attributes:
        num_layers: Layers of the backbone.
        epochs: Passes over the training texts, for all phases together.
        labels: For each task the number of its training labels, in the order of the tasks.
        thinned: The tasks that ``--label-fraction`` names.
        backbone_learning_rate: The backbone's learning rate in the settings.
    """

    num_layers: int
    epochs: float
    labels: Mapping[str, int]
    thinned: tuple[str, ...] = ()
    backbone_learning_rate: float = TrainConfig.backbone_learning_rate

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order given."""
        return tuple(self.labels)


Recipe = Callable[[RecipeContext], tuple[Phase, ...]]


def gradual_unfreezing(context: RecipeContext) -> tuple[Phase, ...]:
    """The heads, then one more layer from the top in each phase, the embeddings with the last.

    With discriminative learning rates (each layer's is that of the layer above divided by
    2.6) and slanted triangular schedules, one for each phase.

    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text
    Classification" (arXiv:1801.06146), sections 3.2 and 3.3.
    """
    scenarios = _downwards(context.num_layers)
    share = context.epochs / len(scenarios)
    return tuple(Phase(scenario=scenario, epochs=share, **HOWARD_RUDER) for scenario in scenarios)


def lp_ft(context: RecipeContext) -> tuple[Phase, ...]:
    """Linear probing, then full fine-tuning from the heads that it has found, at one rate for all.

    Heads that fit the frozen features spare the backbone the large, distorting gradients of
    random ones. ``--head-learning-rate`` is that of the linear probe alone;
    ``--backbone-learning-rate`` is that of the whole model in the second phase.

    Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution" (arXiv:2202.10054).
    """
    probe, fine_tuning = _even(context, "backbone_frozen", "none_frozen")
    one_rate = (("head", context.backbone_learning_rate),)
    return probe, dataclasses.replace(fine_tuning, learning_rates=one_rate)


def sequential_heads(context: RecipeContext) -> tuple[Phase, ...]:
    """One task after the other, in the order given, then all together.

    While one task is trained, the heads of the others are frozen and their losses off.

    Source: the sequential learning of the scenarios ``<task>_frozen``; as intermediate-task
    training, Phang et al. 2018 (arXiv:1811.01088).
    """
    _refuse_single(context, "sequential_heads")
    share = context.epochs / (len(context.tasks) + 1)
    return (*(_only(context, (task,), share) for task in context.tasks), _all(share))


def scarce_head_last(context: RecipeContext) -> tuple[Phase, ...]:
    """The head of the scarce task is trained last: frozen at first, its loss off; then all train.

    The scarce task is that which ``--label-fraction`` names alone, else that with the fewest
    labels, of equal ones the last.

    Source: the scenarios ``<task>_frozen``, whose use with imbalanced tasks this is.
    """
    _refuse_single(context, "scarce_head_last")
    scarce = _scarce(context)
    rich = tuple(task for task in context.tasks if task != scarce)
    return (_only(context, rich, context.epochs / 2), _all(context.epochs / 2))


def auto(context: RecipeContext) -> tuple[Phase, ...]:
    """Unfreezes one more layer only where validation says that the last phase paid.

    A phase hands on its best parameters; one of several epochs ends early when an epoch has
    not improved on its best. The next begins if the phase has raised the best mean macro-F1
    so far.

    Source: gradual unfreezing (Howard & Ruder 2018, arXiv:1801.06146) with early stopping
    (Prechelt 1998, "Early Stopping - But When?") in the place of a fixed number of phases.
    """
    scenarios = _downwards(context.num_layers)
    share = context.epochs / len(scenarios)
    return tuple(
        Phase(
            scenario=scenario,
            epochs=share,
            patience=1,
            keep_best=True,
            requires_gain=_PAYS if i > 1 else None,
        )
        for i, scenario in enumerate(scenarios)
    )


def _top_down(k: int) -> Recipe:
    """The heads, then the top k layers at once with them.

    Source: the order of Howard & Ruder 2018 (arXiv:1801.06146) in two phases, without
    gradual steps; as "top-k tuning" in Lee et al. 2019 (arXiv:1911.03090).
    """
    return lambda context: _even(context, "backbone_frozen", f"top_{k}")


_TOP_DOWN = re.compile(r"top_down_(\d+)")
RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe
    for recipe in (gradual_unfreezing, lp_ft, sequential_heads, scarce_head_last, auto)
}


def _downwards(num_layers: int) -> list[str]:
    return ["backbone_frozen", *(f"top_{k}" for k in range(1, num_layers)), "none_frozen"]


def _even(context: RecipeContext, *scenarios: str) -> tuple[Phase, ...]:
    share = context.epochs / len(scenarios)
    return tuple(Phase(scenario=scenario, epochs=share) for scenario in scenarios)


def _only(context: RecipeContext, trained: tuple[str, ...], epochs: float) -> Phase:
    """The backbone and the heads of some tasks; the others' are frozen, and their losses off."""
    out = [task for task in context.tasks if task not in trained]
    off = tuple((task, 0.0) for task in out)
    return Phase(scenario=f"{'+'.join(out)}_frozen", epochs=epochs, task_weights=off)


def _all(epochs: float) -> Phase:
    return Phase(scenario="none_frozen", epochs=epochs)


def _refuse_single(context: RecipeContext, recipe: str) -> None:
    if len(context.tasks) < 2:
        raise UserError(
            f"recipe {recipe} needs several tasks, and there is one: name more with "
            "--label-columns, or use another recipe"
        )


def _scarce(context: RecipeContext) -> str:
    """The one task that --label-fraction names, else the last of those with the fewest labels."""
    if len(context.thinned) == 1:
        return context.thinned[0]
    return min(reversed(context.tasks), key=lambda task: context.labels[task])


def is_recipe(name: str) -> bool:
    """Whether a name is that of a recipe; a file is none."""
    return name in RECIPES or _TOP_DOWN.fullmatch(name) is not None


def recipe_named(name: str) -> Recipe:
    """The recipe of a name, or of a ``.json`` or ``.py`` file.

    A JSON file holds a list of objects with the fields of ``Phase``. A Python file defines
    ``phases``: a list of ``Phase``, or a function from ``RecipeContext`` to one; it is run. Rules
    files that the phases of a file name are found from the file's folder.

    Raises:
        UserError: There is no such recipe, or the file can't be read or holds something else.
    """
    if name.endswith(".json"):
        return _of_json(expanded(name))
    if name.endswith(".py"):
        return _of_python(expanded(name))
    if name in RECIPES:
        return RECIPES[name]
    if top := _TOP_DOWN.fullmatch(name):
        return _top_down(int(top.group(1)))
    if is_scenario(name):
        raise UserError(f"{name} is a scenario, not a recipe: name it with --scenario {name}")
    close = difflib.get_close_matches(name, [*RECIPES, "top_down_1"], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(
        f"unknown recipe {name!r}: {hint}use one of {', '.join(RECIPES)}, top_down_k with a "
        "number for k, or a .json or .py file of phases"
    )


_PHASES = {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["scenario"]}}


def _of_json(file: Path) -> Recipe:
    try:
        objects = read_json(file, _PHASES, "write a list of phases, each with its scenario")
    except UserError as error:
        raise UserError(f"recipe file {error}") from error
    phases = _beside(file, phases_from(objects, f"recipe file {file}"))
    return lambda _: phases


def _beside(file: Path, phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """The phases of a file, whose rules files are named by paths that hold from any folder."""
    folder = file.absolute().parent
    return tuple(
        dataclasses.replace(phase, scenario=str(_from(folder, phase.scenario)))
        if phase.scenario.endswith(".json") and not is_inline(phase.scenario)
        else phase
        for phase in phases
    )


def _from(folder: Path, file: str) -> Path:
    return expanded(file) if file.startswith("~") else folder / file


def _of_python(file: Path) -> Recipe:
    if not file.is_file():
        raise UserError(f"recipe file {file} is not there: name one that is")
    phases: Any = _tried(file, lambda: runpy.run_path(str(file)).get("phases"))

    def recipe(context: RecipeContext) -> tuple[Phase, ...]:
        found = _tried(file, lambda: phases(context)) if callable(phases) else phases
        if not isinstance(found, list | tuple) or not found:
            raise UserError(
                f"recipe file {file} defines no phases: write phases = [Phase(...), ...], or a "
                "function of a RecipeContext that returns such a list"
            )
        if unlike := [phase for phase in found if not isinstance(phase, Phase)]:
            raise UserError(
                f"recipe file {file}: {unlike[0]!r} is not a Phase of mtl_jax.freezing.phase"
            )
        return _beside(file, found)

    return recipe


def _tried(file: Path, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except UserError as error:
        raise UserError(f"recipe file {file}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(
            f"recipe file {file} failed with {type(error).__name__} ({error}): correct it"
        ) from error


def phases_of(config: TrainConfig, context: RecipeContext) -> tuple[Phase, ...]:
    """The completed phases of a run: those of its recipe, or one of its scenario.

    Raises:
        UserError: There is no such recipe, or it can't be one; the phase is named.
    """
    if config.recipe is None:
        if config.scenario is None:
            raise ValueError("neither a scenario nor a recipe")
        return (Phase(scenario=config.scenario).completed(config),)
    phases = tuple(phase.completed(config) for phase in recipe_named(config.recipe)(context))
    if not phases[0].restart:
        raise UserError(
            f"recipe {config.recipe}: phase 1 has no earlier schedule to continue: leave "
            "restart out"
        )
    if phases[0].requires_gain is not None:
        raise UserError(
            f"recipe {config.recipe}: phase 1 has no phase before it that could gain: leave "
            "requires_gain out"
        )
    return phases
