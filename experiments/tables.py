"""The tables of the report, as data: each is built once and rendered three times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments import wording
from experiments.arms import (
    BASELINE,
    REFERENCE,
    Result,
    arms_of,
    evaluation_split,
    gap,
    lookup,
    numbers,
    per_seed,
    qualities,
    quality,
    sources_of,
    trained_arms,
)
from experiments.cells import difference_cell, mean_cell
from experiments.compare import against
from experiments.document import Cell, Row, Table
from experiments.resampling import seeds_needed, smallest_p
from experiments.statistics import LEVEL, mean_interval
from mtl_jax.config import TASKS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Hutto & Gilbert, "VADER", ICWSM 2014: weighted F1 over three classes. The
# learner is the best of theirs that was trained and tested on the same source.
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "one human rater": {
        "tweet": 0.84,
        "movie_review": 0.92,
        "product_review": 0.85,
        "editorial": 0.65,
    },
    "VADER": {"tweet": 0.96, "movie_review": 0.61, "product_review": 0.63, "editorial": 0.55},
    "best learner of 2014": {
        "tweet": 0.84,
        "movie_review": 0.75,
        "product_review": 0.61,
        "editorial": 0.50,
    },
}


def has_published(sources: Sequence[str]) -> bool:
    """Whether the published figures are about these sources."""
    return set(sources) == set(PUBLISHED["VADER"])


def quality_table(results: Sequence[Result], chosen: str | None) -> Table:
    """Accuracy and macro-F1 per arm and task, with the probe and chance below all_frozen."""
    split = evaluation_split(results)
    rows = []
    for arm in arms_of(results):
        cells = [mean_cell(qualities(results, arm, split))]
        for task in TASKS:
            cells += [
                mean_cell(numbers(results, arm, split, task, metric))
                for metric in ("accuracy", "macro_f1")
            ]
        rows.append(_arm_row(results, arm, chosen, cells))
        rows += _baseline_rows(results) if arm == BASELINE else []
    columns = ["scenario", "seeds", "mean macro-F1"]
    columns += [f"{task} {metric}" for task in TASKS for metric in ("accuracy", "macro-F1")]
    note = _over_seeds(results)
    if any(row.style == "reference" for row in rows):
        note += (
            f" The heads of `{BASELINE}` are untrained; in italics, what its frozen features "
            "give under 20 nearest neighbours, and what always guessing the commonest label gives."
        )
    return Table(f"Quality on the {split} split", tuple(columns), tuple(rows), note)


def gap_table(results: Sequence[Result], chosen: str | None) -> Table:
    """How much better each arm is on what it trained on."""
    split = evaluation_split(results)
    rows = [
        _arm_row(
            results,
            arm,
            chosen,
            [
                mean_cell(
                    per_seed(results, arm, lambda result, t=task: gap(result, t, split)),
                    sign=True,
                )
                for task in TASKS
            ],
        )
        for arm in trained_arms(results)
    ]
    return Table(
        f"Macro-F1 on the training examples minus macro-F1 on the {split} split",
        ("scenario", "seeds", *TASKS),
        tuple(rows),
        "The larger the gap, the more the scenario has fitted its own training examples.",
    )


def cost_table(results: Sequence[Result], chosen: str | None) -> Table:
    """What each arm costs, and how that compares with full fine-tuning."""
    arms = arms_of(results)
    keys = (
        "train_seconds",
        "compile_seconds",
        "examples_per_second",
        "trainable_parameters",
        "optimizer_state_bytes",
    )
    means = {arm: {key: _mean(numbers(results, arm, key)) for key in keys} for arm in arms}
    for arm in arms:
        # It is done once: by the first seed, or, where they are trained at once, by all.
        seconds = numbers(results, arm, "compile_seconds")
        means[arm]["compile_seconds"] = sum(seconds.values()) if seconds else None
    reference = means.get(REFERENCE, {})
    digits = {
        key: wording.decimals(means[arm][key] for arm in arms)
        for key in ("train_seconds", "compile_seconds")
    }

    def cell(arm: str, key: str) -> Cell:
        value = means[arm][key]
        if key == "optimizer_state_bytes":
            text = wording.byte_size(value)
        elif arm == BASELINE and key != "trainable_parameters":
            return Cell(wording.MISSING)
        else:
            text = wording.fixed(value, digits.get(key, 0))
        aside = "" if arm == REFERENCE else wording.ratio(value, reference.get(key))
        return Cell(text, f"({aside})" if aside and key != "compile_seconds" else "")

    rows = [_arm_row(results, arm, chosen, [cell(arm, key) for key in keys]) for arm in arms]
    note = (
        "Means over seeds; of the compilation, which is counted apart from training, the sum, as "
        "the seeds share it. Seeds that are trained at once have equal shares of the time. It "
        "includes the one pass that computes what frozen layers make of the training texts, in "
        "full even where that was kept from another run."
    )
    if REFERENCE in arms:
        note += f" In brackets, the ratio to `{REFERENCE}`."
    columns = ("train s", "compile s", "examples/s", "trained parameters", "optimizer state")
    return Table("Cost of one run", ("scenario", "seeds", *columns), tuple(rows), note)


def difference_table(results: Sequence[Result], chosen: str | None) -> Table | None:
    """Paired differences to full fine-tuning; None where there is nothing to pair."""
    split = evaluation_split(results)
    reference = qualities(results, REFERENCE, split)
    found = against(results, REFERENCE, split)
    if not found:
        return None
    rows = []
    for each in found:
        cells = [difference_cell(qualities(results, each.arm, split), reference)]
        for task in TASKS:
            mine, theirs = (
                numbers(results, arm, split, task, "macro_f1") for arm in (each.arm, REFERENCE)
            )
            cells.append(difference_cell(mine, theirs))
        cells += [Cell(wording.p_text(p)) for p in (each.difference.p_value, each.p_value)]
        rows.append(_arm_row(results, each.arm, chosen, cells, seeds=each.difference.interval.n))
    most = max(each.difference.interval.n for each in found)
    return Table(
        f"Macro-F1 on the {split} split, minus that of {REFERENCE} with the same seed",
        ("scenario", "shared seeds", "mean of tasks", *TASKS, "p", "corrected\N{NO-BREAK SPACE}p"),
        tuple(rows),
        f"In brackets, where {seeds_needed(LEVEL)} seeds or more are shared, the 95 % bootstrap "
        "interval of their mean (percentile, expanded for few seeds), not corrected. p is of the "
        "paired permutation test, two-sided, and belongs to the mean of tasks; corrected, it is "
        f"that of the {wording.count_of(len(found), 'comparison')} of that column, tested together "
        "(Westfall & Young 1993, maxT over joint flips of the seeds' signs). The smallest p that "
        f"{wording.count_of(most, 'seed')} can give, in either column, is {smallest_p(most):.3g}.",
    )


def source_table(results: Sequence[Result], chosen: str | None) -> Table | None:
    """Weighted F1 of the sentiment task by source, beside published figures."""
    split = evaluation_split(results)
    sources = sources_of(results, split)
    if not sources:
        return None
    path = (split, "sentiment", "weighted_f1_by_source")
    rows = [
        _arm_row(
            results,
            arm,
            chosen,
            [mean_cell(numbers(results, arm, *path, source)) for source in sources],
        )
        for arm in trained_arms(results)
    ]
    note = _over_seeds(results)
    if has_published(sources):
        for name, scores in PUBLISHED.items():
            cells = [Cell(wording.fixed(scores[source], 2)) for source in sources]
            rows.append(Row((Cell(name), Cell(""), *cells), "reference"))
        note += (
            " In italics, published figures: Hutto & Gilbert, VADER, ICWSM 2014. They were not "
            "measured on this split."
        )
    return Table(
        f"Weighted F1 of sentiment on the {split} split, by source",
        ("scenario", "seeds", *sources),
        tuple(rows),
        note,
    )


def _over_seeds(results: Sequence[Result]) -> str:
    if len({result["seed"] for result in results}) == 1:
        return "One seed: there is no interval."
    return (
        "Mean over seeds ± half of the 95 % Student-t interval. The interval covers other seeds "
        "(heads, order of the data, dropout), not other test examples."
    )


def _baseline_rows(results: Sequence[Result]) -> list[Row]:
    """What the frozen features and the label counts give, without training."""
    rows = []
    for name, key in (("20-NN probe", "probe"), ("majority class", "chance")):
        found = [result[key] for result in results if result.get(key)]
        if found:
            # No weight is drawn for either, so every seed repeats the same numbers.
            metrics = found[-1]
            cells = [
                Cell(wording.fixed(lookup(metrics, task, metric)))
                for task in TASKS
                for metric in ("accuracy", "macro_f1")
            ]
            mean = Cell(wording.fixed(quality(metrics)))
            rows.append(Row((Cell(name), Cell(""), mean, *cells), "reference"))
    return rows


def _arm_row(
    results: Sequence[Result],
    arm: str,
    chosen: str | None,
    cells: Sequence[Cell],
    seeds: int | None = None,
) -> Row:
    if seeds is None:
        seeds = len({result["seed"] for result in results if result["arm"] == arm})
    asked = len({result["seed"] for result in results})
    count = str(seeds) if seeds == asked else f"{seeds} of {asked}"
    style = "chosen" if arm == chosen else ""
    return Row((Cell(f"`{arm}`"), Cell(count), *cells), style)


def _mean(values: Mapping[int, float]) -> float | None:
    interval = mean_interval(values.values())
    return interval.mean if interval else None
