"""What in a study's results would cost its reader a week: each doubt in a sentence."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.core.names import listed
from mtl_jax.runs.notes import FEWEST_STEPS
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.results import (
    Result,
    by_setting,
    control_heads,
    evaluation_split,
    mean_of_known,
    qualities,
    quality,
    setting_name,
    tasks_of,
    trained_arms,
    untrained_heads,
)
from mtl_jax.studies.stats.two_way import estimate

# Macro-F1 that an arm has to gain between its last two measurements to be called improving.
_GAIN = 0.002
# Of two rates either is at the edge.
_FEWEST_TRIALS = 3


def doubts(results: Sequence[Result], baselines: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """All of them; none where nothing is doubtful.

    Args:
        results: Lines of ``results.jsonl``, of ``text_errors.with_text_errors`` where the
            predictions are there.
        baselines: Lines of ``baselines.jsonl``.
    """
    found = []
    for setting, lines in by_setting(results).items():
        where = f"{setting}: " if setting else ""
        linear = [line for line in baselines if setting_name(line) == setting]
        each = [
            *few_steps(lines),
            *below_linear(lines, linear),
            *small_validation(lines),
            *never_predicted(lines),
            *still_improving(lines),
        ]
        found += [where + words for words in each]
    return [*found, *rates_at_the_edge(results)]


_LINEAR = {
    "tf_idf": "of words (TF-IDF)",
    "logistic_probe": "on the vectors of the frozen backbone",
}
"""What each kind of baseline is a linear model of, for a reader."""


def below_linear(results: Sequence[Result], baselines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether no arm reaches what a linear model does, so that none has learned what it could.

    Of words, or of the vectors that the backbone has before it is trained; the better one counts.

    Args:
        results: Lines of one setting.
        baselines: Lines of ``baselines.jsonl`` of the same.
    """
    split = evaluation_split(results)
    linear = {
        kind: known
        for kind in _LINEAR
        if (
            known := mean_of_known(
                quality(line.get(split)) for line in baselines if line["baseline"] == kind
            )
        )
        is not None
    }
    means = [
        statistics.fmean(found.values())
        for arm in trained_arms(results)
        if (found := qualities(results, arm, split))
    ]
    if not linear or not means or max(means) >= max(linear.values()):
        return []
    best = max(linear, key=linear.__getitem__)
    return [
        f"no arm reaches what a linear model {_LINEAR[best]} does on {split}, "
        f"{formatting.fixed(linear[best])}: the best has {formatting.fixed(max(means))}; train "
        "longer, try other learning rates (--tune), or look at the data"
    ]


def few_steps(results: Sequence[Result]) -> list[str]:
    """The arms of so few steps that they have hardly been trained, and tell nothing of others.

    Args:
        results: Lines of one setting.
    """
    steps = {
        arm: max(line.get("step") or 0 for line in results if line["arm"] == arm)
        for arm in trained_arms(results)
    }
    short = [
        f"`{arm}` for {formatting.count_of(count, 'step')}"
        for arm, count in steps.items()
        if 0 < count < FEWEST_STEPS
    ]
    if not short:
        return []
    return [
        f"fewer than {FEWEST_STEPS} steps hardly train anything: {listed(short)}; train longer "
        "(--epochs)"
    ]


def small_validation(results: Sequence[Result]) -> list[str]:
    """Whether validation is too small to choose an arm on.

    It is where the standard error that its texts leave in a difference from the best arm, twice, is
    above half of the differences that were found.

    Args:
        results: Lines of one setting.
    """
    controls = control_heads(results)
    scores = {
        arm: found
        for arm in trained_arms(results)
        if arm not in controls and len(found := qualities(results, arm, "validation")) > 1
    }
    if len(scores) < 2:
        return []
    best = max(scores, key=lambda arm: statistics.fmean(scores[arm].values()))
    gaps, errors = [], []
    for arm, mine in scores.items():
        shared = sorted(mine.keys() & scores[best].keys())
        found = estimate([scores[best][seed] - mine[seed] for seed in shared])
        if arm != best and found is not None and found.over_texts is not None:
            gaps.append(abs(found.mean))
            errors.append(found.over_texts)
    if not gaps or 2 * statistics.median(errors) <= statistics.median(gaps):
        return []
    return [
        "validation is too small to choose an arm on: its texts leave a standard error of "
        f"{formatting.fixed(statistics.median(errors))} in a difference from the best, and half of "
        f"the differences are below {formatting.fixed(statistics.median(gaps))}; validate on more "
        "texts, or choose by cost"
    ]


def never_predicted(results: Sequence[Result]) -> list[str]:
    """The classes that arms with trained heads never predict, though texts have them.

    A sentence for each arm and task.

    Args:
        results: Lines of one setting.
    """
    split, found = evaluation_split(results), []
    for arm in trained_arms(results):
        lines = [line for line in results if line["arm"] == arm]
        for task in tasks_of(lines):
            runs = [
                of_task["per_class"]
                for line in lines
                if task not in untrained_heads(line)
                and (of_task := (line.get(split) or {}).get(task) or {}).get("per_class")
            ]
            missed = {
                name: count
                for name in (runs[0] if runs else ())
                if (count := sum(_is_missed(each.get(name)) for each in runs))
            }
            if missed:
                classes = [
                    f"{name!r} ({formatting.count_of(runs[0][name]['support'], 'text')}"
                    f"{_of_seeds(count, len(runs))})"
                    for name, count in missed.items()
                ]
                found.append(
                    f"`{arm}` never predicts {formatting.count_of(len(missed), f'{task} class')} "
                    f"that {split} texts have, {listed(classes)}: train longer, or give weights to "
                    "classes (--class-weights)"
                )
    return found


def _of_seeds(missed: int, runs: int) -> str:
    """With how many of its seeds an arm misses a class, where it has several."""
    if runs == 1:
        return ""
    return ", with every seed" if missed == runs else f", with {missed} of {runs} seeds"


def _is_missed(of_class: Mapping[str, Any] | None) -> bool:
    return bool(of_class and of_class["support"] and of_class.get("predicted") == 0)


def still_improving(results: Sequence[Result]) -> list[str]:
    """The arms whose score on validation was still rising when they ended.

    So is one of whose seeds two thirds have their best measurement last, and which gains 0.002 in
    the mean from the last but one to the last.

    Args:
        results: Lines of one setting.
    """
    found = []
    for arm in trained_arms(results):
        ends = [
            [*scores[-2:], max(scores)]
            for line in results
            if line["arm"] == arm and len(scores := _curve(line)) > 1
        ]
        if not ends:
            continue
        last = sum(end == best for _, end, best in ends)
        gain = statistics.fmean(end - before for before, end, _ in ends)
        if 3 * last >= 2 * len(ends) and gain >= _GAIN:
            found.append(
                f"`{arm}` was still improving when it ended: in {last} of "
                f"{formatting.count_of(len(ends), 'run')} the last measurement is the best, and on "
                f"average it is {formatting.fixed(gain)} above the one before; train longer "
                "(--epochs)"
            )
    return found


def _curve(line: Result) -> list[float]:
    scores = (quality(record.get("validation")) for record in line.get("curve") or ())
    return [score for score in scores if score is not None]


def rates_at_the_edge(results: Sequence[Result]) -> list[str]:
    """The arms whose tuned rate, or length, is at the edge of what was tried, or may well be.

    Args:
        results: Lines of ``results.jsonl``; one that was tuned has ``tuned``, with ``chosen``, the
            settings, ``trials``, their number, ``at_edge``, the settings at the edge, and
            ``longest``.
    """
    found: dict[str, None] = {}
    few: dict[str, None] = {}
    for line in results:
        tuned = line.get("tuned") or {}
        if 0 < tuned.get("trials", 0) < _FEWEST_TRIALS:
            few[line["arm"]] = None
        for name in tuned.get("at_edge") or ():
            found[
                f"`{line['arm']}` was tuned to a {name} at the edge of what was tried, "
                f"{tuned['chosen'][name]:g}: one beyond may be better"
            ] = None
        if tuned.get("longest"):
            found[
                f"`{line['arm']}` was tuned to the longest training that was tried: a longer one "
                "may be better"
            ] = None
    if few:
        arms, verb = formatting.listing(list(few)), "was" if len(few) == 1 else "were"
        found[
            f"{arms} {verb} tuned with fewer than {_FEWEST_TRIALS} trials, "
            "too few to tell whether a rate beyond them is better; give --tune more"
        ] = None
    return list(found)
