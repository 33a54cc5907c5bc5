"""The freezing scenarios, as data: ordered rules over the parameter tree."""

from __future__ import annotations

import difflib
import re

from mtl_jax.errors import UserError
from mtl_jax.rules import Rule

FROZEN = "frozen"

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


def scenario_rules(name: str, num_layers: int) -> tuple[Rule, ...]:
    """The rules of a scenario for a backbone of ``num_layers`` layers.

    Args:
        name: A key of the table, or ``top_k`` with a number for k: the top k layers, the
            pooler where there is one, and both heads are trained.
        num_layers: Layers of the backbone.

    Raises:
        UserError: No such scenario, or k off the model's number of layers.
    """
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
