"""First-match rules over parameter paths such as ``backbone/layer_0/mlp/output/kernel``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from mtl_jax.core.errors import UserError

Rule = tuple[str, str]
"""``(pattern, label)``; a pattern is a shell wildcard whose ``*`` also crosses ``/``."""


def assign_labels(paths: Iterable[str], rules: Sequence[Rule]) -> dict[str, str]:
    """Gives every path the label of the first rule that matches it.

    Args:
        paths: Parameter paths, their parts joined by ``/``.
        rules: Ordered rules; the first match wins.

    Returns:
        The label of each path, in the order of ``paths``.

    Raises:
        UserError: Names every path that no rule matches, and every rule whose pattern
            matches no path. A rule that earlier rules leave nothing to is legal: that is
            what a catch-all at the end of a list is.
    """
    paths = list(paths)
    labels: dict[str, str] = {}
    for path in paths:
        for pattern, label in rules:
            if fnmatchcase(path, pattern):
                labels[path] = label
                break
    problems = [
        f"no rule matches parameter {path!r}: add a rule for it"
        for path in paths
        if path not in labels
    ]
    problems += [
        f"rule {pattern!r} -> {label!r} matches no parameter: correct the pattern or remove it"
        for pattern, label in rules
        if not any(fnmatchcase(path, pattern) for path in paths)
    ]
    if problems:
        raise UserError("; ".join(problems))
    return labels
