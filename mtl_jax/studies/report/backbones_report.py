"""The report of the study of several backbones: quality against cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.studies.report import study_sections
from mtl_jax.studies.report.cells import (
    arm_cell,
    difference_cell,
    flops_cell,
    mean_cell,
    seconds_cell,
    step_cell,
)
from mtl_jax.studies.report.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Paragraph,
    Row,
    Table,
)
from mtl_jax.studies.report.figures import picture
from mtl_jax.studies.report.outline import Failure, Parts, assemble
from mtl_jax.studies.report.study_figures import cost_scatter
from mtl_jax.studies.stats import formatting, wording
from mtl_jax.studies.stats.comparisons import Comparison, compared, having, values_of
from mtl_jax.studies.stats.intervals import mean_interval
from mtl_jax.studies.stats.overfitting import (
    calibration_error,
    loss_past_its_minimum,
    mean_gap,
)
from mtl_jax.studies.stats.recommendation import Recommendation, recommend
from mtl_jax.studies.stats.recommendation_text import answer, explain
from mtl_jax.studies.stats.results import (
    BASELINE,
    REFERENCE,
    Result,
    arms_of,
    control_heads,
    evaluation_split,
    numbers,
    per_seed,
    quality,
    score_name,
    untrained_heads,
)

SETTING = "backbone"
FROZEN = "backbone_frozen"


def document(
    results: Sequence[Result], failures: Sequence[Failure], context: Mapping[str, Any]
) -> Document:
    """See ``outline.Build``."""
    split = evaluation_split(results)
    names = short_names(values_of(results, SETTING))
    skipped = skipped_backbones(failures)
    left: list[Block] = []
    if unreached := [backbone for backbone in skipped if backbone not in names]:
        count = formatting.count_of(len(unreached), "backbone")
        text = f"{count} could not be read and {'is' if len(unreached) == 1 else 'are'} left out: "
        left.append(Paragraph(text + formatting.listing(unreached) + ".", "warning"))
    left += [Paragraph(_cut_short(b, results, failures), "warning") for b in skipped if b in names]
    drawn = cost_scatter(results, SETTING, names, lambda r: quality(r.get(split)), split)
    gains = tuning_gains(results, split)
    texts = [study_sections.comparison_text(each, FROZEN, names[each.value]) for each in gains]
    parts = Parts(
        title="What a larger backbone buys",
        answer=[
            *left,
            Paragraph(answer_text(results, names), "lead"),
            *([picture(drawn)] if drawn else []),
        ],
        table=[_table(results, names, split), *_overfitting(results, names, split)],
        statistics=_statistics(results, names, texts),
    )
    return assemble(parts, results, failures, context)


leave_report = study_sections.leaving(document, most_columns=5)


def skipped_backbones(failures: Sequence[Failure]) -> list[str]:
    """The backbones that could not be read, be it for some of their runs only."""
    return list(dict.fromkeys(f["setting"][SETTING] for f in failures if f.get("skipped")))


def _cut_short(backbone: str, results: Sequence[Result], failures: Sequence[Failure]) -> str:
    """What is there of a backbone that could be read once, and later could not."""
    done = len(having(results, **{SETTING: backbone}))
    lacking = sum(
        bool(each.get("skipped")) and each["setting"][SETTING] == backbone for each in failures
    )
    return (
        f"`{backbone}` could not be read for {formatting.count_of(lacking, 'run')}: what is "
        "said of "
        f"it is from the {formatting.count_of(done, 'run')} that "
        f"{'is' if done == 1 else 'are'} done."
    )


def short_names(backbones: Sequence[str]) -> dict[str, str]:
    """What to call each backbone: the last part of its name, or all where two share that."""
    last = {backbone: backbone.rstrip("/").rsplit("/", 1)[-1] for backbone in backbones}
    shared = [name for name in last.values() if list(last.values()).count(name) > 1]
    return {backbone: backbone if name in shared else name for backbone, name in last.items()}


def tuning_gains(results: Sequence[Result], split: str) -> list[Comparison]:
    """Per backbone full fine-tuning minus its frozen features."""
    arms = dict.fromkeys(values_of(results, SETTING), REFERENCE)
    return compared(results, SETTING, arms, FROZEN, lambda result: quality(result.get(split)))


def _statistics(
    results: Sequence[Result], names: Mapping[str, str], texts: Sequence[str]
) -> list[Block]:
    """How sure the choice is, and what full fine-tuning brings with each backbone."""
    advice = choice(results, names)
    found: list[Block] = [] if advice is None else [Paragraph(" ".join(explain(advice)))]
    return [*found, Bullets(tuple(texts))] if texts else found


def choice(results: Sequence[Result], names: Mapping[str, str]) -> Recommendation | None:
    """The cheapest backbone and scenario that nothing separates from the best on validation."""
    called = {_pair(r): f"{names[r['setting'][SETTING]]} under `{r['arm']}`" for r in results}
    return recommend(_pairs(results), noun="pair", names=called)


def answer_text(results: Sequence[Result], names: Mapping[str, str]) -> str:
    """Which backbone and scenario to use, in two sentences."""
    advice = choice(results, names)
    if advice is None:
        return "No run with validation scores has trained every head: no backbone is recommended."
    return answer(advice, _pairs(results))


def _pairs(results: Sequence[Result]) -> list[Result]:
    """The results with each pair of a backbone and an arm as an arm of its own."""
    # Of a pair the name does not tell what is not trained.
    return [
        {**result, "arm": _pair(result), "untrained_heads": untrained_heads(result)}
        for result in results
        if result["arm"] != BASELINE
    ]


def _pair(result: Result) -> str:
    return f"{result['setting'][SETTING]} {result['arm']}"


def _overfitting(
    results: Sequence[Result], names: Mapping[str, str], split: str
) -> Iterator[Table]:
    """Whether a larger backbone overfits more; nothing where no run was measured twice."""
    if not names:
        return
    controls, (baseline, *_) = control_heads(results), names
    numbers_of_run = (
        lambda result: mean_gap(result, split),
        lambda result: calibration_error(result, split),
    )
    rows = []
    for backbone, name in names.items():
        here = having(results, **{SETTING: backbone})
        for arm in arms_of(here):
            risen = per_seed(here, arm, loss_past_its_minimum)
            if arm == BASELINE or not risen:
                continue
            base = per_seed(having(results, **{SETTING: baseline}), arm, loss_past_its_minimum)
            over = Cell("") if backbone == baseline else difference_cell(risen, base)
            cells = (mean_cell(per_seed(here, arm, n)) for n in numbers_of_run)
            loss = mean_cell(risen)
            rows.append(Row((Cell(name), arm_cell(arm, controls), loss, over, *cells)))
    columns = (
        "backbone",
        "arm",
        "loss past its minimum",
        f"minus {names[baseline]}",
        f"train minus {split}",
        "ECE",
    )
    note = (
        "Means over tasks and seeds ± half of the 95 % t interval over seeds. The loss is that on "
        "validation at the end of training, above its minimum, in nats; the other two are of the "
        f"checkpoint that was kept: {score_name(results)}, and the expected calibration error on "
        f"the {split} split."
    )
    if rows:
        yield Table("Whether a larger backbone overfits more", columns, tuple(rows), note)


def _table(results: Sequence[Result], names: Mapping[str, str], split: str) -> Table:
    advice, controls = choice(results, names), control_heads(results)
    baseline = next(iter(names))
    rows = []
    for backbone, name in names.items():
        here = having(results, **{SETTING: backbone})
        for arm in arms_of(here):
            scores = per_seed(here, arm, lambda result: quality(result.get(split)))
            base = per_seed(
                having(results, **{SETTING: baseline}), arm, lambda r: quality(r.get(split))
            )
            over = Cell("") if backbone == baseline else difference_cell(scores, base)
            trained, total = (
                mean_interval(numbers(here, arm, key).values())
                for key in ("trainable_parameters", "total_parameters")
            )
            flops = flops_cell(numbers(here, arm, "train_flops"))
            seconds = seconds_cell(numbers(here, arm, "train_seconds"))
            cells = (
                arm_cell(arm, controls),
                Cell(str(len({r["seed"] for r in here if r["arm"] == arm}))),
                mean_cell(scores),
                flops,
                over,
                step_cell(here, arm),
                seconds,
                Cell(formatting.fixed(trained.mean if trained else None, 0)),
                Cell(formatting.fixed(total.mean if total else None, 0)),
            )
            chosen = advice is not None and advice.chosen.arm == f"{backbone} {arm}"
            rows.append(Row((Cell(name), *cells), "chosen" if chosen else ""))
    columns = (
        "backbone",
        "arm",
        "seeds",
        score_name(results),
        "training FLOPs",
        f"minus {names[baseline]}",
        "step ms",
        "train s",
        "trained parameters",
        "parameters",
    )
    note = (
        f"{wording.mean_note(results, split)} Differences are of the same arm and seed. FLOPs are "
        "counted; times "
        "are measured, medians with their range, and no answer rests on one."
    )
    return Table(f"Quality on the {split} split and cost", columns, tuple(rows), note)
