"""The freezing scenarios, as data: ordered rules over the parameter tree."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtl_jax.config.scenario import is_inline
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import parse_json, read_json
from mtl_jax.core.paths import expanded
from mtl_jax.freezing.rules import Rule

FROZEN = "frozen"
LORA = "lora"
# What the settings name a learning rate for; a label's subgroups share it.
_GROUPS = ("head", "backbone")

_NUMBERED = re.compile(r"(top|first|middle|only|lora)_(\d+)")
# One of each kind that a number is a part of, for the closest name to a wrong one.
_EXAMPLES = ("top_1", "first_1", "middle_1", "only_0", "lora_8")
_TRAINED: Rule = ("backbone/*", "backbone")
_REST_FROZEN: Rule = ("backbone/*", FROZEN)
# Those whose name says nothing of a task or a number, from the rules that train all heads.
_PLAIN: Mapping[str, Callable[[Sequence[Rule]], tuple[Rule, ...]]] = {
    "all_frozen": lambda _: (("*", FROZEN),),
    "backbone_frozen": lambda heads: (_REST_FROZEN, *heads),
    "bias_only": lambda heads: (("backbone/*/bias", "backbone"), _REST_FROZEN, *heads),
    "layer_norm_only": lambda heads: (("backbone/*norm/*", "backbone"), _REST_FROZEN, *heads),
    "none_frozen": lambda heads: (*heads, _TRAINED),
}

_RULES = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
}


def scenario_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """The names of the scenarios for some tasks, but for those with a number."""
    *most_frozen, least_frozen = _PLAIN
    return (*most_frozen, *(f"{task}_frozen" for task in tasks), least_frozen)


def is_scenario_name(name: str, tasks: Sequence[str]) -> bool:
    """Whether ``name`` is that of a scenario, whatever the number in it."""
    known = name in scenario_names(tasks) or _NUMBERED.fullmatch(name) is not None
    return known or bool(_frozen_tasks(name, tasks))


def is_scenario(name: str) -> bool:
    """Whether a name is that of a scenario, of whatever tasks and layers; a file is none."""
    return name in _PLAIN or name.endswith("_frozen") or _NUMBERED.fullmatch(name) is not None


def _frozen_tasks(name: str, tasks: Sequence[str]) -> list[str]:
    """The tasks whose heads ``a+b_frozen`` freezes; none of any other name."""
    found = list(dict.fromkeys(name.removesuffix("_frozen").split("+")))
    return found if name.endswith("_frozen") and set(found) <= set(tasks) else []


def lora_rank(name: str) -> int | None:
    """The rank of the factors that a scenario trains; None for one that trains none."""
    numbered = _NUMBERED.fullmatch(name)
    return int(numbered.group(2)) if numbered and numbered.group(1) == "lora" else None


def close_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """Names that a mistaken one may be close to: each, and one of each kind with a number."""
    return (*scenario_names(tasks), *_EXAMPLES)


def names_in_words(tasks: Sequence[str], num_layers: int) -> str:
    """All scenarios for some tasks and so many layers, for a message."""
    return (
        f"{', '.join(scenario_names(tasks))}, top_k, first_k or middle_k with k from 1 to "
        f"{num_layers}, only_i with i from 0 to {num_layers - 1}, or lora_r with r from 1 on"
    )


def usual_scenarios(tasks: Sequence[str], *, adapters: bool = False) -> tuple[str, ...]:
    """The names of those that are compared by default, from the most frozen to the least.

    Args:
        tasks: The names of the tasks.
        adapters: With those that train a little of every layer.
    """
    heads = (f"{task}_frozen" for task in tasks)
    little = ("bias_only", "lora_8") if adapters else ()
    return ("all_frozen", "backbone_frozen", *little, "top_1", "top_2", *heads, "none_frozen")


def scenario_rules(name: str, num_layers: int, tasks: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of a scenario for a backbone of ``num_layers`` layers and a head for each task.

    Beside all heads

    * ``top_k`` trains the top k layers, and the pooler where there is one;
    * ``bias_only`` trains every bias of the backbone, those of the embeddings' layer norm and
      of the pooler included (BitFit, Ben Zaken et al. 2022, arXiv:2106.10199);
    * ``layer_norm_only`` trains the scales and biases of all layer norms, that of the
      embeddings included;
    * ``first_k``, ``middle_k`` and ``only_i`` train one block of layers and nothing else of the
      backbone, neither embeddings nor pooler (surgical fine-tuning, Lee et al. 2023,
      arXiv:2210.11466): the k lowest of L layers; the k layers from layer (L - k) // 2 on, so
      that as many are above as below, or one more; layer i, counted from 0;
    * ``lora_r`` trains factors of rank r beside kernels of the layers, and nothing of what was
      pre-trained (Hu et al. 2022, arXiv:2106.09685): see ``freezing.lora``.

    Args:
        name: One of ``scenario_names``; ``top_k``, ``first_k`` or ``middle_k`` with a number for
            k, ``only_i`` with one for i, ``lora_r`` with one for r; ``a+b_frozen``, which freezes
            the heads of several tasks as ``<task>_frozen`` freezes one; or a list of ``[pattern,
            label]`` pairs, as JSON or in a ``.json`` file. Their labels are ``frozen``, ``head``,
            ``backbone``, and the latter two's subgroups such as ``backbone/layer_5``; the label of
            factors is ``lora``.
        num_layers: Layers of the backbone.
        tasks: The names of the tasks.

    Raises:
        UserError: No such scenario, a number off the model's layers, or a list or file that
            can't be read or holds something else.
    """
    if is_inline(name):
        return _labelled(_inline(name), "scenario")
    if name.endswith(".json"):
        return _labelled(_rules_in(name), f"scenario file {name}")
    heads = [(f"{task}/*", "head") for task in tasks]
    if name in _PLAIN:
        return _PLAIN[name](heads)
    if frozen_tasks := _frozen_tasks(name, tasks):
        frozen = [(f"{task}/*", FROZEN) for task in frozen_tasks]
        return (*frozen, *(head for head in heads if (head[0], FROZEN) not in frozen), _TRAINED)
    if not (numbered := _NUMBERED.fullmatch(name)):
        from mtl_jax.freezing.recipes import is_recipe

        if is_recipe(name):
            raise UserError(f"{name} is a recipe, not a scenario: name it with --recipe {name}")
        close = difflib.get_close_matches(name, close_names(tasks), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"unknown scenario {name!r}: {hint}use one of {names_in_words(tasks, num_layers)}"
        )
    kind, number = numbered.group(1), int(numbered.group(2))
    if kind == "lora":
        if number < 1:
            raise UserError(f"scenario {name!r} has factors of rank 0: use lora_1 or more")
        return (("backbone/*/lora_[ab]", LORA), _REST_FROZEN, *heads)
    lowest, highest = (0, num_layers - 1) if kind == "only" else (1, num_layers)
    if not lowest <= number <= highest:
        raise UserError(
            f"scenario {name!r} does not fit the backbone's {num_layers} layers: use "
            f"{kind}_{lowest} to {kind}_{highest}"
        )
    if kind == "top":
        below = [f"backbone/layer_{i}/*" for i in range(num_layers - number)]
        frozen = [(pattern, FROZEN) for pattern in ("backbone/embeddings/*", *below)]
        return (*frozen, _TRAINED, *heads)
    block = {
        "first": range(number),
        "middle": range((num_layers - number) // 2, (num_layers + number) // 2),
        "only": range(number, number + 1),
    }[kind]
    return (*((f"backbone/layer_{i}/*", "backbone") for i in block), _REST_FROZEN, *heads)


_REMEDY = 'write a JSON list of pairs such as [["backbone/*", "frozen"], ["*", "head"]]'


def _inline(text: str) -> Any:
    return parse_json(text, _RULES, "scenario", _REMEDY)


def _rules_in(file: str) -> Any:
    try:
        return read_json(expanded(file), _RULES, _REMEDY)
    except UserError as error:
        raise UserError(f"scenario file {error}") from error


def _labelled(pairs: Any, origin: str) -> tuple[Rule, ...]:
    for number, (_, label) in enumerate(pairs, 1):
        if label != FROZEN and label.split("/")[0] not in _GROUPS:
            raise UserError(
                f"{origin}: rule {number} has the label {label!r}: use {FROZEN}, "
                f"{', '.join(_GROUPS)}, or a subgroup such as backbone/layer_0"
            )
    return tuple((pattern, label) for pattern, label in pairs)
