"""The report of the study of a scarce task: what freezing its head, or training it last, buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.studies.report import study_sections
from mtl_jax.studies.report.cells import mean_cell
from mtl_jax.studies.report.document import Block, Bullets, Cell, Document, Paragraph
from mtl_jax.studies.report.figures import picture
from mtl_jax.studies.report.outline import Failure, Parts, assemble
from mtl_jax.studies.report.study_figures import curves
from mtl_jax.studies.stats import formatting, wording
from mtl_jax.studies.stats.claim_specs import forgotten
from mtl_jax.studies.stats.claims import Judgement, judge_claims
from mtl_jax.studies.stats.comparisons import (
    BETTER,
    VERDICTS,
    WORSE,
    Comparison,
    Number,
    questions,
    values_of,
)
from mtl_jax.studies.stats.results import (
    Result,
    arms_of,
    evaluation_split,
    numbers,
    per_seed,
    score,
    score_name,
    tasks_of,
)

SETTING = "fraction"
JOINT = "joint"
_SAY = {
    "scarce_head_frozen": "Freezing the scarce head at first, all losses on,",
    "scarce_head_last": "Training the scarce head last, its loss off until then,",
    "sequential_heads": "Training one task after the other",
    "sequential_control": "Training the scarce head alone, behind the other tasks,",
    "single_task": "Training the scarce task alone",
}


def document(
    results: Sequence[Result], failures: Sequence[Failure], context: Mapping[str, Any]
) -> Document:
    """See ``outline.Build``; all lines have one scarce task."""
    (scarce,) = values_of(results, "scarce_task")
    others = [task for task in tasks_of(results) if task != scarce]
    split = evaluation_split(results)
    fractions = fraction_names(results)
    judgement = judge(results, failures, of(scarce, split))
    answer, comparisons = _findings(judgement, arms_of(results), fractions, (scarce, split))
    joint = [arm for arm in arms_of(results) if arm != "single_task"]
    words = (f"{score_name(results)} on the {split} split", f"part of the {scarce} labels")
    panels = [
        (scarce, arms_of(results), of(scarce, split)),
        *((other, joint, of(other, split)) for other in others),
    ]
    drawn = curves("curves", results, SETTING, fractions, [p for p in panels if p[1]], words)
    table: list[Block] = []
    gains: list[Block] = []
    for task in (scarce, *others):
        number = of(task, split)
        kept = [result for result in results if task == scarce or result["arm"] in joint]
        table.append(
            study_sections.grid(
                f"{task} {score_name(results, task)} on the {split} split, by the part of the "
                f"{scarce} labels",
                kept,
                SETTING,
                fractions,
                lambda here, arm, number=number: mean_cell(per_seed(here, arm, number)),
                wording.mean_note(kept, split),
            )
        )
        title = f"{task} {score_name(results, task)} minus that of {JOINT}"
        gains.append(study_sections.gain_grid(title, kept, SETTING, fractions, number, JOINT))
    parts = Parts(
        title=f"What freezing the head of a scarce task, or training it last, buys: {scarce}",
        answer=[*answer[:1], *([picture(drawn)] if drawn else []), *answer[1:]],
        table=[*table, *_forgetting(results, fractions)],
        cost=[
            *study_sections.cost_blocks(
                results,
                SETTING,
                fractions,
                "The arms make as many updates on the scarce labels, and not as many steps.",
                JOINT,
            ),
            *_updates(results, fractions, (scarce, *others)),
        ],
        statistics=[*comparisons, *gains],
        judgement=judgement,
    )
    return assemble(parts, results, failures, context)


leave_report = study_sections.leaving(document)


def _updates(
    results: Sequence[Result], fractions: Mapping[float, str], tasks: Sequence[str]
) -> list[Block]:
    """How many updates met labels of each task, by arm and part of the labels."""

    def cell(here: Sequence[Result], arm: str) -> Cell:
        means = []
        for task in tasks:
            counts = numbers(here, arm, "updates_by_task", task).values()
            means.append(f"{sum(counts) / len(counts):,.0f}" if counts else formatting.MISSING)
        return Cell(" / ".join(means))

    title = f"Updates with labels of {' / '.join(tasks)}"
    note = (
        "Counted in the batches of each run, means over seeds. A thin task has no label in many "
        "batches; where it trains alone it has some in each."
    )
    return [study_sections.grid(title, results, SETTING, fractions, cell, note)]


def _forgetting(results: Sequence[Result], fractions: Mapping[float, str]) -> list[Block]:
    """What tasks that have a phase of their own lose behind it, on validation."""
    kept = [result for result in results if forgotten(result) is not None]

    def cell(here: Sequence[Result], arm: str) -> Cell:
        means = []
        for at_end in (False, True):
            lost = per_seed(here, arm, lambda line, at_end=at_end: forgotten(line, at_end=at_end))
            mean = sum(lost.values()) / len(lost) if lost else None
            means.append(formatting.MISSING if mean is None else formatting.signed(-mean))
        return Cell(" / ".join(means))

    if not kept:
        return []
    title = "Forgetting: validation score of the tasks that train first, against that after it"
    note = (
        "The first number is what they have when the phase of the scarce task ends, the second "
        "when the run ends, minus what they had at the end of their own phase; means over tasks "
        "and seeds. In sequential_control the phase trains the scarce head alone, so that the "
        "first is 0 by construction."
    )
    return [study_sections.grid(title, kept, SETTING, fractions, cell, note)]


def of(task: str, split: str) -> Number:
    """A task's score on a split, of a result."""
    return lambda result: score(result.get(split), task)


def fraction_names(results: Sequence[Result]) -> dict[float, str]:
    """The parts of the labels that were kept, the smallest first, in per cent."""
    values = sorted(values_of(results, SETTING))
    return {value: f"{100 * value:g} %" for value in values}


def judge(results: Sequence[Result], failures: Sequence[Failure], number: Number) -> Judgement:
    """The claims, tested together with what every arm has over joint training.

    The comparisons over all parts of the labels are one family, for all arms; those at one
    part are another.
    """
    overall: list[Comparison] = []
    within: list[Comparison] = []
    for arm in arms_of(results):
        if arm != JOINT:
            whole, each = questions(results, SETTING, arm, JOINT, number)
            overall += whole
            within += each
    return judge_claims(results, failures, overall, within)


def _findings(
    judgement: Judgement,
    arms: Sequence[str],
    fractions: Mapping[float, str],
    words: tuple[str, str],
) -> tuple[list[Block], list[Block]]:
    """What each arm has over joint training: over all fractions, and at each."""
    answer: list[Block] = []
    texts: list[str] = []
    for arm in arms:
        gains = [gain for gain in judgement.within if gain.arm == arm]
        if gains:
            answer.append(Paragraph(_lead(judgement, arm, gains, fractions, words), "lead"))
        texts += [
            study_sections.comparison_text(gain, JOINT, f"{fractions[gain.value]} of the labels")
            for gain in gains
        ]
    if answer:
        answer.insert(0, Paragraph(_advice(judgement, words), "lead"))
    else:
        answer.append(Paragraph("No arm can be compared with another.", "lead"))
    return answer, [Bullets(tuple(texts))] if texts else []


def _advice(judgement: Judgement, words: tuple[str, str]) -> str:
    """Whether to train the scarce head from the start, in one or two sentences."""
    better, worse = (
        [each.arm for each in judgement.overall if each.verdict == verdict]
        for verdict in (BETTER, WORSE)
    )

    def are(arms: Sequence[str]) -> str:
        return f"{formatting.listing(arms)} {'is' if len(arms) == 1 else 'are'}"

    where = f"for {words[0]} on the {words[1]} split"
    text = (
        f"{formatting.capital(where)} {are(better)} better than training all heads from the start "
        f"(`{JOINT}`)."
        if better
        else f"Train all heads from the start (`{JOINT}`): nothing else is shown to be better "
        f"{where}."
    )
    return f"{text} {are(worse)} worse." if worse else text


def _lead(
    judgement: Judgement,
    arm: str,
    gains: Sequence[Comparison],
    fractions: Mapping[float, str],
    words: tuple[str, str],
) -> str:
    """What an arm has over joint training, over all fractions."""
    where = "; ".join(
        f"{verdict} with {', '.join(there)}"
        for verdict in VERDICTS
        if (there := [fractions[gain.value] for gain in gains if gain.verdict == verdict])
    )
    what = _SAY.get(arm, f"`{arm}`")
    lead = f"{what} cannot be averaged, as no seed has every part of the labels: {where}."
    for whole in judgement.overall:
        if whole.arm == arm:
            interval = whole.difference.interval
            limits = f" {formatting.limits(interval)}" if interval.low is not None else ""
            parts = formatting.series([fractions[value] for value in whole.value])
            lead = (
                f"{what} changes the {words[0]} macro-F1 on the {words[1]} split by "
                f"{formatting.signed(whole.mean)}{limits} against joint training, the mean over "
                f"{parts} of the labels, paired by seed: {whole.verdict} "
                f"({wording.corrected_p(whole.p_value, interval.n)}); {where}."
            )
    return lead
