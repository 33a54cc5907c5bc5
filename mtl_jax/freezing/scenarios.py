"""The freezing scenarios, as data: ordered rules over the parameter tree."""

from __future__ import annotations

import difflib
import re

from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_json
from mtl_jax.core.paths import expanded
from mtl_jax.freezing.rules import Rule

FROZEN = "frozen"
# What the settings name a learning rate for; a label's subgroups share it.
_GROUPS = ("head", "backbone")

_SCENARIOS: dict[str, tuple[Rule, ...]] = {
    "all_frozen": (("*", FROZEN),),
    "backbone_frozen": (("backbone/*", FROZEN), ("classifier/*", "head"), ("sentiment/*", "head")),
    "classifier_frozen": (
        ("classifier/*", FROZEN),
        ("sentiment/*", "head"),
        ("backbone/*", "backbone"),
    ),
    "sentiment_frozen": (
        ("sentiment/*", FROZEN),
        ("classifier/*", "head"),
        ("backbone/*", "backbone"),
    ),
    "none_frozen": (("classifier/*", "head"), ("sentiment/*", "head"), ("backbone/*", "backbone")),
}

_RULES = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
}

SCENARIOS = tuple(_SCENARIOS)
"""Their names, but for ``top_k``."""


def scenario_rules(name: str, num_layers: int) -> tuple[Rule, ...]:
    """The rules of a scenario for a backbone of ``num_layers`` layers.

    Args:
        name: A key of the table, or ``top_k`` with a number for k: the top k layers, the
            pooler where there is one, and both heads are trained; or a ``.json`` file with a
            list of ``[pattern, label]`` pairs. The labels are ``frozen``, ``head``,
            ``backbone``, and the latter two's subgroups such as ``backbone/layer_5``.
        num_layers: Layers of the backbone.

    Raises:
        UserError: No such scenario, k off the model's number of layers, or a file that can't
            be read or holds something else.
    """
    if name.endswith(".json"):
        return _rules_in(name)
    if name in _SCENARIOS:
        return _SCENARIOS[name]
    top = re.fullmatch(r"top_(\d+)", name)
    if not top:
        names = [*_SCENARIOS, "top_1"]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"unknown scenario {name!r}: {hint}use one of {', '.join(_SCENARIOS)}, or top_k "
            f"with k from 1 to {num_layers}"
        )
    k = int(top.group(1))
    if not 1 <= k <= num_layers:
        raise UserError(
            f"scenario {name!r} is off the backbone's {num_layers} layers: use top_1 to "
            f"top_{num_layers}"
        )
    frozen = [f"backbone/layer_{i}/*" for i in range(num_layers - k)]
    return (
        ("backbone/embeddings/*", FROZEN),
        *((pattern, FROZEN) for pattern in frozen),
        ("backbone/*", "backbone"),
        ("classifier/*", "head"),
        ("sentiment/*", "head"),
    )


def _rules_in(file: str) -> tuple[Rule, ...]:
    remedy = 'write a JSON list of pairs such as [["backbone/*", "frozen"], ["*", "head"]]'
    try:
        pairs = read_json(expanded(file), _RULES, remedy)
    except UserError as error:
        raise UserError(f"scenario file {error}") from error
    for number, (_, label) in enumerate(pairs, 1):
        if label != FROZEN and label.split("/")[0] not in _GROUPS:
            raise UserError(
                f"scenario file {file}: rule {number} has the label {label!r}: use {FROZEN}, "
                f"{', '.join(_GROUPS)}, or a subgroup such as backbone/layer_0"
            )
    return tuple((pattern, label) for pattern, label in pairs)
