"""Compares arms, paired by seed and text: setting by setting, over all, and with one reference.

``corrected`` tests the comparisons of a family together. A comparison that a report shows in
two places is tested once, in one family, so that it has one p-value and one verdict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mtl_jax.studies.stats.intervals import (
    LEVEL,
    MARGIN,
    PairedDifference,
    family_tests,
    of_differences,
    paired_difference,
)
from mtl_jax.studies.stats.results import Result, by_setting, per_seed, qualities, trained_arms

Number = Callable[[Result], float | None]
Line = TypeVar("Line", bound=Mapping[str, Any])

VERDICTS = (BETTER, WORSE, ALIKE, UNSURE) = (
    *("better", "worse"),
    f"alike within {MARGIN:g}",
    "not told apart",
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An arm minus a reference.

    Attributes:
        value: The setting's value; of a mean over settings all of its values.
        arm: The arm.
        difference: Over shared seeds.
        p_value: Of the difference, corrected for the family that it was tested with. None
            of fewer than three seeds, and where it was not tested, as one that comes before it in
            order was not made.
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
        """One of ``VERDICTS``, by the rule for claims; see ``decision_rules``."""
        if self.difference.interval.within(MARGIN):
            return ALIKE
        if self.p_value is None or self.p_value > LEVEL:
            return UNSURE
        return BETTER if self.mean > 0 else WORSE


@dataclasses.dataclass(frozen=True)
class Overall:
    """An arm minus a reference over several settings.

    Attributes:
        difference: Of each seed's means over the settings; None where no seed has them all.
        within: The difference in each setting at which the two share a seed, by its name.
        settings: Those settings. What a mean was taken over has to be said: a setting whose
            runs have failed is not among them.
    """

    difference: PairedDifference | None
    within: Mapping[str, PairedDifference]
    settings: tuple[Mapping[str, Any], ...]


def having(lines: Sequence[Line], **setting: Any) -> list[Line]:
    """The results or failures of arms whose setting has these values."""
    return [
        line
        for line in lines
        if all(line["setting"].get(name) == value for name, value in setting.items())
    ]


def values_of(results: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The values that a setting has, in the order in which the file has them first."""
    return list(dict.fromkeys(result["setting"][name] for result in results))


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of a family, tested together; see ``family_tests``."""
    p_values = family_tests([each.difference for each in comparisons])
    return [
        dataclasses.replace(comparison, p_value=p_value)
        for comparison, p_value in zip(comparisons, p_values, strict=True)
    ]


def in_sequence(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects for comparisons whose order was fixed before any was made.

    They are made one after the other until one fails, so none costs another its level: the
    corrected p-value is the largest so far, ``max_{j<=i} p_j``, and that of every comparison
    behind one that was not made is unknown.

    Source: Maurer, Hothorn & Lehmacher, "Multiple Comparisons in Drug Clinical Trials and
    Preclinical Assays: A-Priori Ordered Hypotheses", Biometrie in der
    chemisch-pharmazeutischen Industrie 6, 1995.

    Args:
        p_values: In the order of the comparisons; None is one that was not made.
    """
    ordered: list[float | None] = []
    for place, p_value in enumerate(p_values):
        before = ordered[-1] if place else 0.0
        ordered.append(None if p_value is None or before is None else max(before, p_value))
    return ordered


def compared(
    results: Sequence[Result], name: str, arms: Mapping[Any, str], reference: str, number: Number
) -> list[Comparison]:
    """One comparison for each value of a setting at which both arms share a seed, corrected.

    Args:
        results: Lines of ``results.jsonl``.
        name: Of the setting.
        arms: Which arm is compared, per value of the setting.
        reference: What it is compared with.
        number: What is compared, such as the quality on a split.
    """
    found = []
    for value, arm in arms.items():
        here = having(results, **{name: value})
        mine, theirs = (per_seed(here, each, number) for each in (arm, reference))
        difference = paired_difference(mine, theirs)
        if difference is not None and arm != reference:
            found.append(Comparison(value, arm, difference, difference.p_value))
    return corrected(found)


def against(results: Sequence[Result], reference: str, split: str) -> list[Comparison]:
    """Every other trained arm minus a reference, corrected for their number.

    Args:
        results: Lines of ``results.jsonl``, of a study without settings.
        reference: An arm.
        split: On which the mean macro-F1 over tasks is compared.
    """
    base = qualities(results, reference, split)
    found = {
        arm: paired_difference(qualities(results, arm, split), base)
        for arm in trained_arms(results)
        if arm != reference
    }
    return corrected([Comparison(None, arm, d, d.p_value) for arm, d in found.items() if d])


def over_all(results: Sequence[Result], arm: str, reference: str, number: Number) -> Overall:
    """An arm minus a reference, each seed's mean over the settings in which both have it.

    Seeds that lack a setting that another seed has are left out: a mean over other settings
    would not compare like with like.
    """
    within: dict[str, PairedDifference] = {}
    settings = []
    for name, lines in by_setting(results).items():
        mine, theirs = (per_seed(lines, each, number) for each in (arm, reference))
        difference = paired_difference(mine, theirs)
        if difference is not None:
            within[name] = difference
            settings.append(lines[0].get("setting") or {})
    every = [difference.by_seed for difference in within.values()]
    seeds = sorted(set.intersection(*map(set, every))) if every else []
    means = {seed: sum(by_seed[seed] for by_seed in every) / len(every) for seed in seeds}
    return Overall(of_differences(means), within, tuple(settings))


def questions(
    results: Sequence[Result], name: str, arm: str, reference: str, number: Number
) -> tuple[list[Comparison], list[Comparison]]:
    """An arm minus a reference over all values of a setting, and at each of them.

    Returns:
        One comparison, none where no seed has all; and one per value, in ascending order.
        They are not corrected yet: what else a report compares belongs to their families.
    """
    found = over_all(results, arm, reference, number)
    pairs = zip(found.settings, found.within.values(), strict=True)
    within = [Comparison(setting[name], arm, d, d.p_value) for setting, d in pairs]
    within.sort(key=lambda each: each.value)
    values, whole = tuple(each.value for each in within), found.difference
    return ([Comparison(values, arm, whole, whole.p_value)] if whole else []), within
