"""The report of the study of what raises quality: what each change and what ensembles bring."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.core.errors import UserError
from mtl_jax.studies.ensembles import FEWEST_MEMBERS, ensemble, members
from mtl_jax.studies.report import study_sections, tables
from mtl_jax.studies.report.cells import arm_cell, difference_cell, mean_cell
from mtl_jax.studies.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Document,
    Paragraph,
    Row,
    Table,
)
from mtl_jax.studies.report.outline import Failure, Parts, assemble
from mtl_jax.studies.stats import formatting, wording
from mtl_jax.studies.stats.comparisons import Comparison, against
from mtl_jax.studies.stats.intervals import LEVEL, text_interval
from mtl_jax.studies.stats.results import (
    REFERENCE,
    SPLITS,
    Result,
    arms_of,
    evaluation_split,
    lookup,
    measures,
    per_seed,
    qualities,
    quality,
    score_name,
    sources_of,
    tasks_of,
)
from mtl_jax.studies.text_errors import shared_tasks, with_texts

STUDY = "quality"
"""The study that this is the report of."""
Number = Callable[[Mapping[str, Any]], float | None]
"""From the metrics of a split to what a column is about."""


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The seeds of an arm together.

    Attributes:
        arm: The arm.
        size: How many seeds.
        metrics: On a split, whose scores are ``Measured``.
    """

    arm: str
    size: int
    metrics: Mapping[str, Any]


def document(
    results: Sequence[Result], failures: Sequence[Failure], context: Mapping[str, Any]
) -> Document:
    """See ``outline.Build``."""
    results = with_shared_tasks(results)
    split = evaluation_split(results)
    splits = list(dict.fromkeys(("validation", split)))
    folder = context.get("folder")
    together = {each: ensembles(folder, results, each) if folder else [] for each in splits}
    answer = Paragraph(answer_text(results, together[split], split), "lead")
    parts = Parts(title="What raises quality", answer=[answer])
    if results:
        parts = dataclasses.replace(
            parts,
            answer=[answer, *_combination(results)],
            table=[score_table(results, together[each], each) for each in reversed(splits)],
            cost=[tables.cost_table(results, None)],
            statistics=_gains(results, together, splits),
        )
    return assemble(parts, results, failures, context)


leave_report = study_sections.leaving(document, most_columns=8)


def with_shared_tasks(results: Sequence[Result]) -> list[Result]:
    """The lines with the metrics of those tasks that all arms have: these are compared."""
    tasks = set(shared_tasks([line["validation"] for line in results if line.get("validation")]))
    found = []
    for line in results:
        kept = dict(line)
        for split in (*SPLITS, "probe", "chance", "text_baseline"):
            if isinstance(metrics := line.get(split), dict):
                kept[split] = {task: each for task, each in metrics.items() if task in tasks}
        found.append(kept)
    return found


def ensembles(folder: Path, results: Sequence[Result], split: str) -> list[Ensemble]:
    """The ensemble of each arm of several seeds whose predictions on a split were kept.

    Args:
        folder: Of the study.
        results: Lines of ``with_shared_tasks``.
        split: The split.
    """
    found = []
    tasks = tasks_of(results)
    for arm in arms_of(results):
        size = len(members(results, arm))
        if size < FEWEST_MEMBERS:
            continue
        try:
            own = ensemble(folder, arm, split)
        except UserError:
            # Predictions were not kept, or those of other texts for each seed.
            continue
        own = dataclasses.replace(own, tasks={task: own.tasks[task] for task in tasks})
        found.append(Ensemble(arm, size, with_texts(own, split, tasks)))
    return found


def columns_of(results: Sequence[Result], split: str) -> dict[str, Number]:
    """What is compared, by what to call it: the mean of tasks, each task, and each source."""
    found: dict[str, Number] = {f"mean {score_name(results)}": quality}
    for task in tasks_of(results):
        for metric, name in measures(results, task):
            found[f"{task} {name}"] = functools.partial(_number, task, metric)
        for source in sources_of(results, split, task):
            path = (task, "weighted_f1_by_source", source)
            found[f"{task} weighted F1, {source}"] = functools.partial(_number, *path)
    return found


def _number(*path_and_metrics: Any) -> float | None:
    *path, metrics = path_and_metrics
    return lookup(metrics, *path)


def score_table(results: Sequence[Result], together: Sequence[Ensemble], split: str) -> Table:
    """What each arm and each ensemble of its seeds reaches on a split."""
    columns, of_arm = columns_of(results, split), {each.arm: each for each in together}
    rows = []
    for arm in arms_of(results):
        seeds = len(members(results, arm))
        cells = [mean_cell(_seeds(results, arm, split, number)) for number in columns.values()]
        rows.append(Row((arm_cell(arm), Cell(str(seeds)), *cells)))
        if (own := of_arm.get(arm)) is not None:
            cells = [_text_cell(number(own.metrics)) for number in columns.values()]
            rows.append(Row((Cell(_called(own)), Cell(""), *cells), "reference"))
    note = (
        f"{wording.mean_note(results, split)} In italics, the seeds of the arm above together: "
        "their probabilities averaged, ± half of the 95 % interval over texts, for these seeds."
    )
    return Table(f"Scores on the {split} split", ("arm", "seeds", *columns), tuple(rows), note)


def gain_table(
    results: Sequence[Result],
    together: Sequence[Ensemble],
    split: str,
    tests: Sequence[Comparison],
) -> Table:
    """What each arm, and each ensemble, brings on a split over one model of the reference."""
    columns, of_arm = columns_of(results, split), {each.arm: each for each in together}
    p_values = {each.arm: each.p_value for each in tests}
    rows = []
    for arm in arms_of(results):
        base = {name: _seeds(results, REFERENCE, split, number) for name, number in columns.items()}
        if arm != REFERENCE:
            cells = [
                difference_cell(_seeds(results, arm, split, number), base[name])
                for name, number in columns.items()
            ]
            rows.append(Row((arm_cell(arm), Cell(formatting.p_text(p_values.get(arm))), *cells)))
        if (own := of_arm.get(arm)) is not None:
            cells = [
                _above(number(own.metrics), base[name].values()) for name, number in columns.items()
            ]
            rows.append(Row((Cell(_called(own)), Cell(""), *cells), "reference"))
    note = (
        f"{wording.difference_note()} p is of the mean {score_name(results)}, and is "
        "corrected for the comparisons of its column. "
        f"{wording.test_note([each.difference for each in tests])} "
        f"{wording.what_intervals_cover(results, split)} In italics, ensembles minus the mean of "
        f"single models of `{REFERENCE}`, with the 95 % interval over texts, for these seeds."
    )
    return Table(
        f"What each change brings on the {split} split, minus {REFERENCE} with the same seed",
        ("arm", "corrected\N{NO-BREAK SPACE}p", *columns),
        tuple(rows),
        note,
    )


def answer_text(results: Sequence[Result], together: Sequence[Ensemble], split: str) -> str:
    """What helps, what it reaches, and what an ensemble adds, in few sentences."""
    on_validation = against(results, REFERENCE, "validation")
    if not on_validation:
        return f"No arm shares a seed with `{REFERENCE}` yet: there is nothing to compare."
    better = [
        each.arm
        for each in on_validation
        # However small: what is looked for here are small gains that add up.
        if each.mean > 0 and each.p_value is not None and each.p_value <= LEVEL
    ]
    words = (
        f"On validation {formatting.listing(better)} {'is' if len(better) == 1 else 'are'} better "
        f"than `{REFERENCE}`"
        if better
        else f"On validation nothing is told apart from `{REFERENCE}` as better"
    )
    best = max(
        (arm for arm in arms_of(results) if qualities(results, arm, "validation")),
        key=lambda arm: _mean(qualities(results, arm, "validation").values()),
    )
    reached = formatting.fixed(_mean(qualities(results, best, split).values()))
    words += f". The highest mean there has `{best}`, which reaches "
    words += f"{formatting.score_of(reached, score_name(results))} on {split}"
    of_best = next((each for each in together if each.arm == best), None)
    if of_best is not None and (score := quality(of_best.metrics)) is not None:
        words += f"; an ensemble of its {of_best.size} seeds reaches {formatting.fixed(score)}"
    return f"{words}."


def _combination(results: Sequence[Result]) -> list[Block]:
    """The command's flag that tries together what is above the reference on validation."""
    single = [each for each in against(results, REFERENCE, "validation") if "+" not in each.arm]
    above = [each.arm for each in single if each.mean > 0]
    # Of two that exclude each other the better one.
    best = _compatible(sorted(above, key={each.arm: -each.mean for each in single}.__getitem__))
    joined = "+".join(arm for arm in above if arm in best)
    if len(best) < 2 or joined in arms_of(results):
        return []
    text = (
        f"{formatting.listing(above)} are above `{REFERENCE}` on validation, in the mean over "
        "seeds. Those that do not exclude each other are one more arm together:"
    )
    return [Paragraph(text), Code(f"--arms {' '.join(arms_of(results))} {joined}")]


def _compatible(arms: Sequence[str]) -> list[str]:
    """Those of the arms, the first ones first, whose changes can be made at once."""
    from mtl_jax.studies.builtin.quality import changes_of

    found: list[str] = []
    for arm in arms:
        with contextlib.suppress(UserError):
            _ = changes_of("+".join([*found, arm]))
            found.append(arm)
    return found


def _gains(
    results: Sequence[Result], together: Mapping[str, Sequence[Ensemble]], splits: Sequence[str]
) -> list[Block]:
    found: list[Block] = []
    for split in splits:
        if tests := against(results, REFERENCE, split):
            texts = [study_sections.comparison_text(t, REFERENCE, f"On {split}") for t in tests]
            found += [gain_table(results, together[split], split, tests), Bullets(tuple(texts))]
    return found


def _seeds(results: Sequence[Result], arm: str, split: str, number: Number) -> dict[int, float]:
    return per_seed(results, arm, lambda line: number(line.get(split) or {}))


def _above(score: float | None, base: Any) -> Cell:
    """A score minus the mean of others on the same texts."""
    if score is None or not base:
        return Cell(formatting.MISSING)
    interval = text_interval(score - _mean(base))
    return Cell(formatting.signed(interval.mean), formatting.limits(interval))


def _text_cell(score: float | None) -> Cell:
    if score is None:
        return Cell(formatting.MISSING)
    interval = text_interval(score)
    return Cell(formatting.fixed(interval.mean), formatting.plus_minus(interval))


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def _called(each: Ensemble) -> str:
    return f"`{each.arm}`, ensemble of {each.size} seeds"
