"""The report of the unfreezing study: from how many sentences it pays, and in which order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import blocks, wording
from experiments.arms import (
    Result,
    arms_of,
    evaluation_split,
    numbers,
    per_seed,
    qualities,
    quality,
)
from experiments.compare import (
    Comparison,
    Number,
    compared,
    having,
    in_sequence,
    over_all,
    values_of,
)
from experiments.document import Block, Bullets, Document, Heading, Paragraph
from experiments.outline import Failure, picture
from experiments.phase_counts import best_phases
from experiments.protocols import is_recipe
from experiments.statistics import mean_interval
from experiments.study_plots import curves, heat_map

SETTING = "max_train_examples"
FROZEN, AT_ONCE, GRADUAL = "backbone_frozen", "none_frozen", "gradual_unfreezing"
# Unfreezing at once with the rates and the schedule of gradual unfreezing.
CONTROL = "at_once"


def leave_report(
    folder: Path,
    results: Sequence[Result],
    failures: Sequence[Failure],
    context: Mapping[str, Any],
) -> Path:
    """Writes and prints the report; see ``study.Report``."""
    return blocks.leave(folder, document(results, failures, context))


def document(
    results: Sequence[Result], failures: Sequence[Failure], context: Mapping[str, Any]
) -> Document:
    """The report as data.

    Args:
        results: Lines of ``results.jsonl``.
        failures: Arms without a result.
        context: See ``report.write_report``.
    """
    split = evaluation_split(results)
    number = on(split)
    findings: list[Block] = [
        Paragraph(pays_text(results, split), "lead"),
        *_of(depth_gains(results, split), FROZEN),
        Paragraph(gradual_text(results, split), "lead"),
        *_of(recipe_gains(results, GRADUAL, split), opponent(results)),
    ]
    sizes = size_names(results)
    details: list[Block] = [Heading("Quality")]
    words = (f"macro-F1 on the {split} split", "training sentences")
    drawn = heat_map(results, SETTING, sizes, number, FROZEN, words)
    details += [picture(drawn)] if drawn else []
    panels = [(title, arms, number) for title, arms in _panels(results) if arms]
    drawn = curves("curves", results, SETTING, sizes, panels, words)
    details += [picture(drawn)] if drawn else []
    details += _tables(results, sizes, split)
    return blocks.report(
        "From how many sentences unfreezing pays", findings, details, results, failures, context
    )


def on(split: str) -> Number:
    """The quality on a split, of a result."""
    return lambda result: quality(result.get(split))


def size_names(results: Sequence[Result]) -> dict[int, str]:
    """The numbers of training sentences, the smallest first, as they are written."""
    return {size: f"{size:,}" for size in sorted(values_of(results, SETTING))}


def is_depth(arm: str) -> bool:
    """Whether an arm trains a fixed number of top layers."""
    return arm == AT_ONCE or re.fullmatch(r"top_\d+", arm) is not None


def depth_gains(results: Sequence[Result], split: str) -> list[Comparison]:
    """Per size the best depth, chosen on validation, minus the frozen backbone on ``split``.

    The largest size comes first, as the most likely to show a gain; a smaller one counts only
    where every larger one has told the two apart.
    """
    chosen = {}
    for size in sorted(size_names(results), reverse=True):
        here = having(results, **{SETTING: size})
        scores = {
            arm: mean_interval(qualities(here, arm, "validation").values())
            for arm in arms_of(here)
            if is_depth(arm)
        }
        known = {arm: interval.mean for arm, interval in scores.items() if interval}
        if known:
            chosen[size] = max(known, key=lambda arm: known[arm])
    return compared(results, SETTING, chosen, FROZEN, on(split), in_sequence)


def pays_from(gains: Sequence[Comparison]) -> int | None:
    """The smallest size from which on unfreezing is better at every size; None without one."""
    found = None
    for gain in sorted(gains, key=lambda gain: gain.value, reverse=True):
        if gain.verdict != "better":
            break
        found = gain.value
    return found


def pays_text(results: Sequence[Result], split: str) -> str:
    """From how many sentences unfreezing pays, in words."""
    gains = depth_gains(results, split)
    if not gains:
        return f"Nothing can be said of unfreezing: no depth shares a seed with `{FROZEN}`."
    start, smallest = pays_from(gains), min(gain.value for gain in gains)
    largest = max(gain.value for gain in gains)
    if start is None:
        last = next(gain for gain in gains if gain.value == largest)
        why = (
            "frozen features are better there"
            if last.verdict == "worse"
            else "the two are not told apart there"
        )
        return (
            f"On this data unfreezing is not shown to pay up to {largest:,} training sentences, "
            f"the most that were tried: {why}."
        )
    first = next(gain for gain in gains if gain.value == start)
    head = (
        f"On this data unfreezing pays from {start:,} training sentences on"
        if start > smallest
        else f"On this data unfreezing pays already with {start:,} training sentences, the fewest "
        "that were tried"
    )
    fewer = sorted(gain.value for gain in gains if gain.value < start)
    below = f"; with {fewer[-1]:,} it is not shown to" if fewer else ""
    return (
        f"{head}: there `{first.arm}`, the depth chosen on validation, has "
        f"{wording.signed(first.mean)} of {split} macro-F1 over `{FROZEN}`{below}."
    )


def opponent(results: Sequence[Result]) -> str:
    """What gradual unfreezing is compared with: its control, where the study has that."""
    return CONTROL if CONTROL in arms_of(results) else AT_ONCE


def recipe_gains(results: Sequence[Result], recipe: str, split: str) -> list[Comparison]:
    """Per size a recipe minus unfreezing at once, with the same passes over the data."""
    arms = dict.fromkeys(size_names(results), recipe)
    return compared(results, SETTING, arms, opponent(results), on(split))


def gradual_text(results: Sequence[Result], split: str) -> str:
    """Whether gradual unfreezing beats unfreezing at once, in words."""
    control = opponent(results)
    whole = over_all(results, SETTING, GRADUAL, control, on(split))
    if whole is None:
        return (
            f"Gradual unfreezing is not compared: `{GRADUAL}` and `{control}` share no seed at "
            "any size."
        )
    gains = recipe_gains(results, GRADUAL, split)
    interval = whole.difference.interval
    limits = f" {wording.limits(interval)}" if interval.low is not None else ""
    answer = {
        "better": "is better than unfreezing at once",
        "worse": "is worse than unfreezing at once",
    }.get(whole.verdict, "is not told apart from unfreezing at once")
    counts = ", ".join(
        f"{verdict} at {sum(gain.verdict == verdict for gain in gains)}"
        for verdict in ("better", "worse", "not told apart")
    )
    return (
        f"With as many passes over the data, gradual unfreezing {answer}: "
        f"{wording.signed(whole.mean)}{limits} of {split} macro-F1, paired by seed, the mean over "
        f"the sizes (p {_equals(whole.p_value)}); size by size {counts} of {len(gains)}. "
        f"{_alike(control)}{_time(results)}FinBERT and ULMFiT found gradual unfreezing better, "
        "T5 slightly worse."
    )


def _alike(control: str) -> str:
    """Whether their phases are all that gradual unfreezing and its opponent differ in."""
    if control == CONTROL:
        return f"`{CONTROL}` has the same learning rates and schedule. "
    return (
        f"Its learning rates and schedule differ from those of `{AT_ONCE}`, too, so that the "
        f"phases need not be the cause; the arm `{CONTROL}` has the same ones. "
    )


def _equals(p_value: float | None) -> str:
    text = wording.p_text(p_value)
    return "unknown, one seed" if p_value is None else text if "<" in text else f"= {text}"


def _time(results: Sequence[Result]) -> str:
    mine, theirs = (
        mean_interval(numbers(having_all, arm, "train_seconds").values())
        for having_all in [having(results, **{SETTING: max(size_names(results))})]
        for arm in (GRADUAL, opponent(results))
    )
    if not mine or not theirs or not mine.mean or not theirs.mean:
        return ""
    factor = wording.factor(mine.mean, theirs.mean, "training time")
    return f"On the most sentences it takes {factor}. "


def _of(gains: Sequence[Comparison], reference: str) -> list[Block]:
    texts = [blocks.comparison_text(gain, reference, f"{gain.value:,} sentences") for gain in gains]
    return [Bullets(tuple(texts))] if texts else []


def _panels(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    arms = arms_of(results)
    fixed = [arm for arm in arms if arm == FROZEN or is_depth(arm)]
    others = [arm for arm in arms if arm not in fixed]
    ends = [arm for arm in (FROZEN, AT_ONCE) if arm in arms]
    return [("fixed depths", fixed), ("recipes and single layers", [*ends, *others])]


def _tables(results: Sequence[Result], sizes: Mapping[int, str], split: str) -> list[Block]:
    number = on(split)
    ends = (AT_ONCE, CONTROL)
    of_recipes = [r for r in results if is_recipe(r["arm"]) or r["arm"] in ends]
    found: list[Block] = [
        blocks.grid(
            f"Macro-F1 on the {split} split, mean of both tasks, by training sentences",
            results,
            SETTING,
            sizes,
            lambda here, arm: blocks.mean_cell(per_seed(here, arm, number)),
            blocks.OVER_SEEDS,
        ),
        Heading("Differences"),
        blocks.gain_grid(f"Minus {FROZEN}", results, SETTING, sizes, number, FROZEN),
    ]
    if any(is_recipe(result["arm"]) for result in of_recipes):
        title = f"Recipes minus {AT_ONCE}, with as many passes over the data at most"
        found.append(blocks.gain_grid(title, of_recipes, SETTING, sizes, number, AT_ONCE))
    return [
        *found,
        *best_phases(results),
        Heading("Cost"),
        blocks.grid(
            "Training seconds of one run, by training sentences",
            results,
            SETTING,
            sizes,
            lambda here, arm: blocks.seconds_cell(numbers(here, arm, "train_seconds")),
            "Arms of a column have as many passes over their sentences, but for `auto` where it "
            "ends early; means over seeds.",
        ),
    ]
