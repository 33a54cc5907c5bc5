"""The freezing scenarios, as data: ordered rules over the parameter tree."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from mtl_jax.config.scenario import is_inline
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import parse_json, read_json
from mtl_jax.core.paths import expanded
from mtl_jax.freezing.rules import Rule

FROZEN = "frozen"
# What the settings name a learning rate for; a label's subgroups share it.
_GROUPS = ("head", "backbone")

# Those whose name says nothing of a task or a layer.
_PLAIN = ("all_frozen", "backbone_frozen", "none_frozen")
_TRAINED: Rule = ("backbone/*", "backbone")

_RULES = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
}


def scenario_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """The names of the scenarios for some tasks, but for ``top_k``."""
    return (*_PLAIN[:2], *(f"{task}_frozen" for task in tasks), *_PLAIN[2:])


def usual_scenarios(tasks: Sequence[str]) -> tuple[str, ...]:
    """The names of those that are compared by default, from the most frozen to the least."""
    heads = (f"{task}_frozen" for task in tasks)
    return ("all_frozen", "backbone_frozen", "top_1", "top_2", *heads, "none_frozen")


def scenario_rules(name: str, num_layers: int, tasks: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of a scenario for a backbone of ``num_layers`` layers and a head for each task.

    Args:
        name: One of ``scenario_names``; or ``top_k`` with a number for k: the top k layers, the
            pooler where there is one, and all heads are trained; or ``a+b_frozen``, the heads of
            several tasks frozen as ``<task>_frozen`` freezes one; or a list of
            ``[pattern, label]`` pairs, as JSON or in a ``.json`` file. The labels are
            ``frozen``, ``head``, ``backbone``, and the latter two's subgroups such as
            ``backbone/layer_5``.
        num_layers: Layers of the backbone.
        tasks: The names of the tasks.

    Raises:
        UserError: No such scenario, k off the model's number of layers, or a list or file that
            can't be read or holds something else.
    """
    if is_inline(name):
        return _labelled(_inline(name), "scenario")
    if name.endswith(".json"):
        return _labelled(_rules_in(name), f"scenario file {name}")
    heads = [(f"{task}/*", "head") for task in tasks]
    if name == "all_frozen":
        return (("*", FROZEN),)
    if name == "backbone_frozen":
        return (("backbone/*", FROZEN), *heads)
    if name == "none_frozen":
        return (*heads, _TRAINED)
    frozen_heads = dict.fromkeys(name.removesuffix("_frozen").split("+"))
    if name.endswith("_frozen") and frozen_heads.keys() <= set(tasks):
        frozen = [(f"{task}/*", FROZEN) for task in frozen_heads]
        return (*frozen, *(head for head in heads if (head[0], FROZEN) not in frozen), _TRAINED)
    top = re.fullmatch(r"top_(\d+)", name)
    if not top:
        names = scenario_names(tasks)
        close = difflib.get_close_matches(name, [*names, "top_1"], n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"unknown scenario {name!r}: {hint}use one of {', '.join(names)}, or top_k "
            f"with k from 1 to {num_layers}"
        )
    k = int(top.group(1))
    if not 1 <= k <= num_layers:
        raise UserError(
            f"scenario {name!r} is off the backbone's {num_layers} layers: use top_1 to "
            f"top_{num_layers}"
        )
    below = [f"backbone/layer_{i}/*" for i in range(num_layers - k)]
    frozen = [(pattern, FROZEN) for pattern in ("backbone/embeddings/*", *below)]
    return (*frozen, _TRAINED, *heads)


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
