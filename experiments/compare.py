"""Compares arms that were trained in several settings: value by value, and over all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.arms import Result, per_seed
from experiments.statistics import LEVEL, PairedDifference, holm, paired_difference

Number = Callable[[Result], float | None]
Correction = Callable[[Sequence[float | None]], list[float | None]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An arm minus a reference at one value of a setting, or over all of its values.

    Attributes:
        value: The setting's value; None over all.
        arm: The arm.
        difference: Over shared seeds.
        p_value: Of the difference, corrected for all values that were compared.
    """

    value: Any
    arm: str
    difference: PairedDifference
    p_value: float | None

    @property
    def mean(self) -> float:
        """The mean difference."""
        return self.difference.interval.mean

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``not told apart``."""
        if self.p_value is None or self.p_value > LEVEL:
            return "not told apart"
        return "better" if self.mean > 0 else "worse"


def having(results: Sequence[Result], **setting: Any) -> list[Result]:
    """The results of arms whose setting has these values."""
    return [
        result
        for result in results
        if all(result["setting"].get(name) == value for name, value in setting.items())
    ]


def values_of(results: Sequence[Result], name: str) -> list[Any]:
    """The values that a setting has, in the order in which the file has them first."""
    return list(dict.fromkeys(result["setting"][name] for result in results))


def in_sequence(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects for comparisons whose order was fixed before any was made.

    They are made one after the other until one fails, so none costs another its level: the
    corrected p-value is the largest so far, ``max_{j<=i} p_j``, and that of every comparison
    behind one that was not made is unknown.

    Source: Maurer, Hothorn & Lehmacher, "Multiple Comparisons in Drug Clinical Trials and
    Preclinical Assays: A-Priori Ordered Hypotheses", Biometrie in der
    chemisch-pharmazeutischen Industrie 6, 1995.

    Args:
        p_values: In the order of the comparisons.
    """
    corrected: list[float | None] = []
    for place, p_value in enumerate(p_values):
        before = corrected[-1] if place else 0.0
        corrected.append(None if p_value is None or before is None else max(before, p_value))
    return corrected


def compared(
    results: Sequence[Result],
    name: str,
    arms: Mapping[Any, str],
    reference: str,
    number: Number,
    correct: Correction = holm,
) -> list[Comparison]:
    """One comparison for each value of a setting at which both arms share a seed.

    Args:
        results: Lines of ``results.jsonl``.
        name: Of the setting.
        arms: Which arm is compared, per value of the setting.
        reference: What it is compared with.
        number: What is compared, such as the quality on a split.
        correct: How the p-values are corrected for there being several values.
    """
    found = []
    for value, arm in arms.items():
        here = having(results, **{name: value})
        difference = paired_difference(
            per_seed(here, arm, number), per_seed(here, reference, number)
        )
        if difference is not None and arm != reference:
            found.append(Comparison(value, arm, difference, None))
    corrected = correct([comparison.difference.p_value for comparison in found])
    return [
        dataclasses.replace(comparison, p_value=p_value)
        for comparison, p_value in zip(found, corrected, strict=True)
    ]


def over_all(
    results: Sequence[Result], name: str, arm: str, reference: str, number: Number
) -> Comparison | None:
    """An arm minus a reference, each seed's mean over the values at which both have it.

    Seeds that lack a value that another seed has are left out: a mean over other values
    would not compare like with like.

    Returns:
        None where the two share no seed.
    """
    values: dict[Any, tuple[dict[int, float], dict[int, float]]] = {}
    for value in values_of(results, name):
        here = having(results, **{name: value})
        pair = (per_seed(here, arm, number), per_seed(here, reference, number))
        if pair[0].keys() & pair[1].keys():
            values[value] = pair
    if not values:
        return None
    shared = set.intersection(*(set(one) & set(other) for one, other in values.values()))
    mine, theirs = (
        {seed: sum(pair[side][seed] for pair in values.values()) / len(values) for seed in shared}
        for side in (0, 1)
    )
    difference = paired_difference(mine, theirs)
    return difference and Comparison(None, arm, difference, difference.p_value)
