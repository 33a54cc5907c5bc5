"""The tables of the report, as data: each is built once and rendered three times."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from mtl_jax.studies.report.cells import (
    arm_cell,
    difference_cell,
    flops_cell,
    mean_cell,
    seconds_cell,
    step_cell,
)
from mtl_jax.studies.report.document import Cell, Row, Table
from mtl_jax.studies.stats import formatting, wording
from mtl_jax.studies.stats.comparisons import against
from mtl_jax.studies.stats.intervals import mean_interval
from mtl_jax.studies.stats.results import (
    BASELINE,
    REFERENCE,
    Result,
    arms_of,
    control_heads,
    evaluation_split,
    gap,
    is_regression,
    lookup,
    measures,
    numbers,
    per_seed,
    qualities,
    quality,
    score,
    score_name,
    sources_of,
    tasks_of,
    trained_arms,
    untrained,
)
from mtl_jax.training.metrics import of_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_PARTS = {
    "compile_seconds": "compiling",
    "frozen_pass_seconds": "frozen pass",
    "step_seconds": "steps",
    "measurement_seconds": "measuring",
    "saving_seconds": "saving",
    "total_seconds": "in all",
}
LINEAR: Mapping[str, str] = {
    "tf_idf": "TF-IDF, linear model",
    "logistic_probe": "frozen vectors, linear model",
}
"""How a table names the lines of ``baselines.jsonl``."""

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


def quality_table(
    results: Sequence[Result],
    chosen: str | None,
    baselines: Sequence[Mapping[str, Any]] = (),
) -> Table:
    """Accuracy and macro-F1 per arm and task, and of what the arms are held against.

    Args:
        results: Lines of ``results.jsonl``.
        chosen: The arm that is recommended.
        baselines: Lines of ``baselines.jsonl``. The probe and chance stand below all_frozen.
    """
    split, tasks = evaluation_split(results), tasks_of(results)
    rows = []
    for arm in arms_of(results):
        cells = [mean_cell(qualities(results, arm, split))]
        for task in tasks:
            cells += [
                mean_cell(numbers(results, arm, split, task, metric))
                for metric, _ in measures(results, task)
            ]
        cells.append(flops_cell(numbers(results, arm, "train_flops"), _flops(results, arm)))
        rows.append(_arm_row(results, arm, chosen, cells))
        rows += _baseline_rows(results) if arm == BASELINE else []
    linear = _linear_rows(results, baselines, split)
    rows += linear
    columns = ["arm", "seeds", f"mean {score_name(results)}"]
    columns += [f"{task} {name}" for task in tasks for _, name in measures(results, task)]
    columns.append("training FLOPs")
    note = wording.mean_note(results, split)
    if REFERENCE in arms_of(results):
        note += f" FLOPs are counted; in brackets the ratio to `{REFERENCE}`."
    if values := [task for task in tasks if is_regression(results, task)]:
        verb = "is a regression" if len(values) == 1 else "are regressions"
        note += f" {formatting.listing(values)} {verb}, whose score is R2."
        if len(values) < len(tasks):
            note += " That of the other tasks is macro-F1."
    unmeasured = [
        task
        for task in tasks
        if not any(score(result.get(split), task) is not None for result in results)
    ]
    if unmeasured:
        note += f" No {split} text has a label of {formatting.listing(unmeasured)}."
    if linear:
        note += (
            " In italics, linear models on words alone (TF-IDF) and on the pooled vectors of the "
            "frozen backbone, trained on the same texts, their penalty chosen on validation."
        )
    else:
        note += _bag_of_words(results)
    if trained := [arm for arm in control_heads(results) if arm != BASELINE]:
        note += (
            f" A head of {formatting.listing(trained)} never trained: a control, not recommended."
        )
    if len(rows) > len(arms_of(results)) + len(linear):
        note += (
            f" The heads of `{BASELINE}` are untrained; in italics, what its frozen features "
            "give under 20 nearest neighbours, and what always guessing the commonest label gives."
        )
    return Table(f"Quality on the {split} split", tuple(columns), tuple(rows), note)


def gap_table(results: Sequence[Result], chosen: str | None) -> Table:
    """How much better each arm is on what it trained on."""
    split, tasks = evaluation_split(results), tasks_of(results)
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
                for task in tasks
            ],
        )
        for arm in trained_arms(results)
    ]
    return Table(
        f"{formatting.capital(score_name(results))} on the training examples minus that on the "
        f"{split} split",
        ("arm", "seeds", *tasks),
        tuple(rows),
        "The larger the gap, the more the arm has fitted its own training examples.",
    )


def cost_table(results: Sequence[Result], chosen: str | None) -> Table:
    """What each arm costs, and how what is counted compares with full fine-tuning."""
    arms = arms_of(results)
    counts = {
        "train_flops": formatting.flops,
        "trainable_parameters": lambda count: formatting.fixed(count, 0),
        "optimizer_state_bytes": formatting.byte_size,
    }
    means = {arm: {key: _mean(numbers(results, arm, key)) for key in counts} for arm in arms}
    reference = means.get(REFERENCE, {})

    def counted(arm: str, key: str) -> Cell:
        value = means[arm][key]
        aside = "" if arm == REFERENCE else formatting.ratio(value, reference.get(key))
        return Cell(counts[key](value), f"({aside})" if aside else "")

    rows = []
    for arm in arms:
        # It is done once: by the first seed, or, where they are trained at once, by all.
        compiling = numbers(results, arm, "compile_seconds").values()
        rate = seconds_cell({} if arm == BASELINE else numbers(results, arm, "examples_per_second"))
        cells = [
            counted(arm, "train_flops"),
            step_cell(results, arm),
            seconds_cell(numbers(results, arm, "train_seconds")),
            Cell(formatting.fixed(sum(compiling), 1) if compiling else formatting.MISSING),
            Cell(rate.text),
            counted(arm, "trainable_parameters"),
            counted(arm, "optimizer_state_bytes"),
        ]
        rows.append(_arm_row(results, arm, chosen, cells))
    note = (
        "Training FLOPs are counted by XLA in the programs before it optimizes them, so they are "
        "the same on every machine. They are those of all updates and of one pass of the frozen "
        "layers over the training texts, even if a cache has saved that pass."
    )
    if BASELINE in arms:
        note += f" Those of `{BASELINE}` are of that pass and of the nearest-neighbour probe."
    note += " Numbers are means over seeds"
    note += f", in brackets the ratio to `{REFERENCE}`." if REFERENCE in arms else "."
    note += (
        " Times are medians, measured on one machine, with their range in brackets: of steps from "
        "the 10th to the 90th percentile, of runs over seeds. Two times whose ranges overlap are "
        "equal, and no answer of this report rests on one. Seeds that are trained at once have "
        "equal shares of the time; compiling, which they share, is the sum over seeds."
    )
    columns = (
        *("training FLOPs", "step ms", "train s", "compile s", "examples/s"),
        *("trained parameters", "optimizer state"),
    )
    return Table("Cost of one run", ("arm", "seeds", *columns), tuple(rows), note)


def wall_table(results: Sequence[Result]) -> Table | None:
    """Where the wall time of a run goes, an arm to a row; None where it was not measured."""
    arms = [arm for arm in arms_of(results) if numbers(results, arm, "wall_time", "total_seconds")]
    if not arms:
        return None
    rows = [
        Row(
            (
                arm_cell(arm, control_heads(results)),
                *(seconds_cell(numbers(results, arm, "wall_time", part)) for part in _PARTS),
            )
        )
        for arm in arms
    ]
    note = (
        "Seconds, measured: medians with their range over runs in brackets. Seeds that are trained "
        "at once have equal shares."
    )
    return Table("Wall time of one run by its parts", ("arm", *_PARTS.values()), tuple(rows), note)


def difference_table(results: Sequence[Result], reference: str, chosen: str | None) -> Table | None:
    """Paired differences to a reference; None where there is nothing to pair."""
    split, tasks = evaluation_split(results), tasks_of(results)
    base = qualities(results, reference, split)
    found = against(results, reference, split)
    if not found:
        return None
    rows = []
    for each in found:
        cells = [difference_cell(qualities(results, each.arm, split), base)]
        for task in tasks:
            mine, theirs = (
                per_seed(results, arm, lambda line, task=task: score(line.get(split), task))
                for arm in (each.arm, reference)
            )
            cells.append(difference_cell(mine, theirs))
        cells += [Cell(formatting.p_text(p)) for p in (each.difference.p_value, each.p_value)]
        rows.append(_arm_row(results, each.arm, chosen, cells, seeds=each.difference.interval.n))
    return Table(
        f"{formatting.capital(score_name(results))} on the {split} split, minus that of "
        f"{reference} with the same seed",
        ("arm", "shared seeds", "mean of tasks", *tasks, "p", "corrected\N{NO-BREAK SPACE}p"),
        tuple(rows),
        f"{wording.difference_note()} p is two-sided and of the mean of tasks; the corrected p "
        "takes all comparisons of that column into account. "
        f"{wording.test_note([each.difference for each in found])} "
        f"{wording.what_intervals_cover(results, split)}",
    )


def source_table(results: Sequence[Result], chosen: str | None, task: str) -> Table | None:
    """Weighted F1 of a task by source, beside published figures where they apply."""
    split = evaluation_split(results)
    sources = sources_of(results, split, task)
    if not sources:
        return None
    path = (split, task, "weighted_f1_by_source")
    rows = [
        _arm_row(
            results,
            arm,
            chosen,
            [mean_cell(numbers(results, arm, *path, source)) for source in sources],
        )
        for arm in trained_arms(results)
    ]
    note = wording.mean_note(results, split)
    if has_published(sources):
        for name, scores in PUBLISHED.items():
            cells = [Cell(formatting.fixed(scores[source], 2)) for source in sources]
            rows.append(Row((Cell(name), Cell(""), *cells), "reference"))
        note += (
            " In italics, published figures: Hutto & Gilbert, VADER, ICWSM 2014. They were not "
            "measured on this split."
        )
    return Table(
        f"Weighted F1 of {task} on the {split} split, by source",
        ("arm", "seeds", *sources),
        tuple(rows),
        note,
    )


def _baseline_rows(results: Sequence[Result]) -> list[Row]:
    """What the frozen features and the label counts give, without training."""
    names = (("20-NN probe", "probe"), ("majority class", "chance"))
    known = ((name, untrained(results, key)) for name, key in names)
    return [_reference_row(name, found, results) for name, found in known if found]


def _linear_rows(
    results: Sequence[Result], baselines: Sequence[Mapping[str, Any]], split: str
) -> list[Row]:
    """What linear models of other vectors reach on the same texts, a row for each kind."""
    rows = []
    for name, words in LINEAR.items():
        lines = [line for line in baselines if line["baseline"] == name and line.get(split)]
        if lines:
            rows.append(_reference_row(words, [line[split] for line in lines], results))
    return rows


def _reference_row(name: str, found: Sequence[Mapping[str, Any]], results: Sequence[Result]) -> Row:
    count = str(len(found)) if len(found) > 1 else ""
    cells = reference_cells(found, results)
    return Row((Cell(name), Cell(count), *cells, Cell("")), "reference")


def reference_cells(
    found: Sequence[Mapping[str, Any]], results: Sequence[Result]
) -> Iterator[Cell]:
    """The mean score, then each measure of each task: means over draws of the training texts.

    Args:
        found: Metrics by task, of each draw.
        results: Of the arms, whose tasks and measures the cells have.
    """

    def mean(number: Callable[[Mapping[str, Any]], float | None]) -> Cell:
        numbers = enumerate(map(number, found))
        return mean_cell({k: value for k, value in numbers if value is not None})

    yield mean(quality)
    for task in tasks_of(results):
        for metric, _ in measures(results, task):
            yield mean(lambda metrics, at=(task, metric): lookup(metrics, *at))


def _bag_of_words(results: Sequence[Result]) -> str:
    """What a model without an encoder reaches on validation: means over draws, as in the rows."""
    draws, words = untrained(results, "text_baseline"), []
    for task in tasks_of(results):
        found = [draw[task] for draw in draws if draw.get(task, {}).get("examples")]
        if found:
            kind = of_metrics(found[0])
            means = {
                key: _mean_of([each[key] for each in found]) for key, _ in kind.metrics_in_words
            }
            words.append(f"{task} {kind.in_words(means)}")
    if not words:
        return ""
    of_draws = f" (means over {len(draws)} draws of the training texts)" if len(draws) > 1 else ""
    return (
        f" Without an encoder, on validation{of_draws}: TF-IDF with a linear model, "
        f"{'; '.join(words)}."
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of those that are defined; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _flops(results: Sequence[Result], arm: str) -> float | None:
    """The mean training FLOPs that those of an arm are compared with."""
    return None if arm == REFERENCE else _mean(numbers(results, REFERENCE, "train_flops"))


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
    return Row((arm_cell(arm, control_heads(results)), Cell(count), *cells), style)


def _mean(values: Mapping[int, float]) -> float | None:
    interval = mean_interval(values.values())
    return interval.mean if interval else None
