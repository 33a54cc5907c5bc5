"""The order of a study's report: the answer first, then what it rests on, statistics last."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.studies import best_run
from mtl_jax.studies.report import figures, prediction_sections, tables
from mtl_jax.studies.report.arm_answers import answers_of
from mtl_jax.studies.report.baselines_table import baselines_table
from mtl_jax.studies.report.claims_section import claims_blocks
from mtl_jax.studies.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Document,
    Heading,
    Paragraph,
    Row,
    Table,
    Verbatim,
)
from mtl_jax.studies.report.tuning_section import tuning_blocks
from mtl_jax.studies.stats import formatting, power
from mtl_jax.studies.stats.claims import Judgement, judge_claims
from mtl_jax.studies.stats.doubts import doubts
from mtl_jax.studies.stats.results import (
    Result,
    arms_of,
    by_setting,
    evaluation_split,
    lookup,
    setting_name,
    tasks_of,
    trained_arms,
    unfinished,
)

Failure = Mapping[str, Any]

Build = Callable[[Sequence[Result], Sequence[Failure], Mapping[str, Any]], Document]
"""A study's report as data, from the lines of its ``results.jsonl``, the arms without a result, and
the context; see ``write.write_report``."""

# Doubts that stand near the answer; the others stand with the statistics.
_NEAR = 4

UNCOUNTED = (
    "Of some of these runs the training FLOPs were not counted, as in results of earlier versions: "
    "what they cost is not compared."
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is a study's own in its report; ``assemble`` adds what all reports have.

    Attributes:
        title: Of the report.
        answer: The answer in few words, and one picture.
        table: The numbers that it rests on.
        sources: Scores by source.
        learning: What is to be seen of training beside the learning curves.
        cost: What the arms cost.
        statistics: How sure it all is: differences, intervals, tests.
        judgement: Of the claims, where they are tested together with the study's own questions.
        noun: What the arms are.
        has_baselines: Whether the table has the linear models, too, which otherwise have one of
            their own.
    """

    title: str
    answer: Sequence[Block]
    table: Sequence[Block] = ()
    sources: Sequence[Block] = ()
    learning: Sequence[Block] = ()
    cost: Sequence[Block] = ()
    statistics: Sequence[Block] = ()
    judgement: Judgement | None = None
    noun: str = "arm"
    has_baselines: bool = False


def assemble(
    parts: Parts,
    results: Sequence[Result],
    failures: Sequence[Failure],
    context: Mapping[str, Any],
) -> Document:
    """The document of a study.

    Args:
        parts: What is its own.
        results: As of ``Build``, as is all that follows.
        failures: Arms without a result.
        context: How the study was made.
    """
    judgement, baselines = parts.judgement or judge_claims(results, failures), baselines_of(context)
    doubtful = doubts(results, baselines)
    linear = None if parts.has_baselines else baselines_table(results, baselines)
    sections: list[tuple[str, Sequence[Block]]] = [
        ("Results", [*parts.table, *([] if linear is None else [linear])]),
        *_predicted(results, context),
        ("Scores by source", parts.sources),
        ("Learning curves", [*curves(results), *parts.learning]),
        ("Cost", _cost(parts, results) if results else []),
        ("What a smaller search would have found", _tuned(context)),
        (
            "Statistics",
            [*_doubts(doubtful[_NEAR:]), *parts.statistics, *_told(results)]
            if parts.statistics
            else [],
        ),
        ("What the design claims", claims_blocks(judgement)),
        ("Runs", _runs(results, failures, context)),
        ("How this was made", origin(results, context)),
        ("Use the model", _model(results, context)),
    ]
    blocks = [*warnings(results, failures), *parts.answer]
    blocks += _doubts(doubtful[:_NEAR])
    for title, section in sections:
        if section:
            blocks += [Heading(title), *section]
    return Document(parts.title, _subtitle(parts, results, context), tuple(blocks))


def baselines_of(context: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The lines of ``baselines.jsonl``, as a context has them."""
    return context.get("baselines") or ()


def _subtitle(parts: Parts, results: Sequence[Result], context: Mapping[str, Any]) -> str:
    words = [formatting.count_of(len(arms_of(results)), parts.noun)]
    words.append(formatting.count_of(len({result["seed"] for result in results}), "seed"))
    if tasks := tasks_of(results):
        words.append(f"{'task' if len(tasks) == 1 else 'tasks'} {formatting.series(list(tasks))}")
    words += [str(context["started"])] if context.get("started") else []
    versions = context.get("versions") or {}
    words += [f"commit {versions['commit'][:10]}"] if versions.get("commit") else []
    return " · ".join(words)


def warnings(results: Sequence[Result], failures: Sequence[Failure]) -> list[Block]:
    """What a reader has to know before any number: changed bytes, failed runs, no test split."""
    changed = [r for r in results if r.get("frozen_digest_unchanged") is False]
    blocks: list[Block] = []
    if changed:
        runs = ", ".join(f"`{r['arm']}` seed {r['seed']}" for r in changed)
        blocks.append(Paragraph(f"Frozen parameters changed in {runs}: distrust them.", "warning"))
    to_come = sum(bool(failure.get("unfinished")) for failure in failures)
    if failed := len(failures) - to_come:
        text = f"{formatting.count_of(failed, 'run')} failed; see the end of the report."
        blocks.append(Paragraph(text, "warning"))
    if to_come:
        runs = formatting.count_of(to_come, "run")
        text = f"The study is not finished: workers have not ended {runs} yet."
        blocks.append(Paragraph(text, "warning"))
    lacking = unfinished(results, failures)
    if lacking:
        arms = "; ".join(f"`{arm}` {finished}" for arm, finished in lacking.items())
        text = "Results are missing, and means over unlike seeds are no fair match"
        blocks.append(Paragraph(f"{text}: {arms}.", "warning"))
    if evaluation_split(results) == "validation":
        text = (
            "The data has no test split. Everything here is measured on the validation split, on "
            "which the best epochs were chosen too, so it is optimistic."
        )
        blocks.append(Paragraph(text, "warning"))
    return blocks


def curves(results: Sequence[Result]) -> list[Block]:
    """Validation score and loss over training; of several settings in that of the best run."""
    settings, words = by_setting(results), []
    if len(settings) > 1:
        best = best_run.best_run(results)
        setting = setting_name(best) if best else list(settings)[-1]
        results, words = settings[setting], [Paragraph(f"Of {setting}.")]
    drawn = [figures.learning_curves(results), figures.loss_curves(results)]
    pictures = [figures.picture(each) for each in drawn if each is not None]
    return [*words, *pictures] if pictures else []


def _predicted(
    results: Sequence[Result], context: Mapping[str, Any]
) -> list[tuple[str, Sequence[Block]]]:
    """The sections on what the arm with the best run predicts; none where nothing was kept."""
    best = best_run.best_run(results)
    if best is None:
        return []
    answers = answers_of(context, results, best["arm"], best.get("setting"))
    if answers is None:
        return []
    # Of a study with settings every arm has many runs, and what they predict is not comparable.
    others = [] if best.get("setting") else trained_arms(results)
    found = [answers_of(context, results, arm) for arm in others if arm != best["arm"]]
    arms = sorted(
        [answers, *(each for each in found if each is not None)],
        key=lambda each: arms_of(results).index(each.arm),
    )
    setting = f", {setting_name(best)}" if best.get("setting") else ""
    which = Paragraph(f"Of `{best['arm']}`{setting}, whose model is kept: see the end.")
    by_arm: list[Block] = [
        prediction_sections.class_table_of_arms(arms, task)
        for task in answers.tasks
        if len(arms) > 1 and not answers.is_value(task)
    ]
    return [
        ("Scores by class", [which, *prediction_sections.class_tables(answers), *by_arm]),
        ("Confusion matrices", prediction_sections.confusion_tables(answers)),
        (
            "Calibration",
            prediction_sections.calibration_blocks(answers, arms if len(arms) > 1 else ()),
        ),
        ("The most confident mistakes", prediction_sections.mistake_tables(answers)),
    ]


def _tuned(context: Mapping[str, Any]) -> list[Block]:
    folder = context.get("folder")
    return [] if folder is None else tuning_blocks(Path(folder))


def _doubts(words: Sequence[str]) -> list[Block]:
    return [Bullets(tuple(words), "warning")] if words else []


def _told(results: Sequence[Result]) -> list[Block]:
    """What difference the study can tell, where it has one setting."""
    words = power.after_text(results) if len(by_setting(results)) == 1 else ""
    return [Paragraph(words)] if words else []


def _cost(parts: Parts, results: Sequence[Result]) -> list[Block]:
    wall = tables.wall_table(results)
    walls = [] if wall is None else [wall]
    return [*parts.cost, *walls, *_uncounted(results), *_digests(results)]


def _uncounted(results: Sequence[Result]) -> list[Block]:
    lacking = any(lookup(result, "train_flops") is None for result in results)
    return [Paragraph(UNCOUNTED)] if lacking else []


def _digests(results: Sequence[Result]) -> list[Block]:
    kept = sum(result.get("frozen_digest_unchanged") is True for result in results)
    runs = formatting.count_of(len(results), "run")
    if kept == len(results):
        return [
            Paragraph(
                f"Every frozen parameter kept its bytes: in all {runs} the digest of the frozen "
                "leaves is the same before and after."
            )
        ]
    text = f"The digest of the frozen leaves is the same before and after in {kept} of {runs}."
    return [Paragraph(text)]


def _runs(
    results: Sequence[Result], failures: Sequence[Failure], context: Mapping[str, Any]
) -> list[Block]:
    """How many runs each arm has, and what the missing ones failed with."""
    done = Counter(result["arm"] for result in results)
    skipped = Counter(failure["arm"] for failure in failures if failure.get("skipped"))
    to_come = Counter(failure["arm"] for failure in failures if failure.get("unfinished"))
    failed = Counter(failure["arm"] for failure in failures) - skipped - to_come
    rows = [
        Row((Cell(f"`{arm}`"), *(Cell(str(n[arm])) for n in (asked, done, failed, skipped))))
        for asked in [context.get("asked") or done + failed + skipped + to_come]
        for arm in asked
    ]
    if not rows:
        return []
    note = "Skipped runs are those whose data or backbone could not be read." if skipped else ""
    columns = ("arm", "asked for", "finished", "failed", "skipped")
    table = Table("", columns, tuple(rows), note)
    alike: dict[str, list[str]] = {}
    for failure in failures:
        alike.setdefault(failure["error"], []).append(_run_text(failure))
    texts = [f"{'; '.join(runs)}: {error}" for error, runs in alike.items()]
    return [table, Bullets(tuple(texts))] if texts else [table]


def failure_text(failure: Failure) -> str:
    """One line on a run that has no result."""
    return f"{_run_text(failure)}: {failure.get('error')}"


def _run_text(failure: Failure) -> str:
    setting = failure.get("setting") or {}
    in_setting = "".join(f", {name} {value}" for name, value in setting.items())
    return f"`{failure.get('arm')}` seed {failure.get('seed')}{in_setting}"


def origin(results: Sequence[Result], context: Mapping[str, Any]) -> list[Block]:
    """How the numbers came to be: command, machine, data, settings, versions.

    Args:
        results: Lines of ``results.jsonl``.
        context: See ``write.write_report``.
    """
    blocks: list[Block] = [Code(str(context["command"]))] if context.get("command") else []
    # Of a study that was resumed, or trained by workers, the last call has seen a part only.
    facts = [
        (words, context.get(name))
        for name, words in (
            ("started", "last call started"),
            ("machine", "machine"),
            ("memory", "memory of the last call"),
            ("seeds", "seeds"),
        )
    ]
    if context.get("seconds") is not None:
        facts.append(("last call took", formatting.duration(float(context["seconds"]))))
    facts.append(("tasks", list(tasks_of(results))))
    for key in ("train_examples", "test_examples", "epochs", "total_parameters"):
        values = sorted({int(result[key]) for result in results if result.get(key)})
        facts.append((key.replace("_", " "), ", ".join(f"{value:,}" for value in values)))
    blocks += _pairs("", {name: value for name, value in facts if value})
    if context.get("data"):
        blocks.append(Paragraph("The data, from which each arm takes its training examples:"))
        blocks.append(Bullets(tuple(Verbatim(str(note)) for note in context["data"])))
    blocks += _pairs("Settings", context.get("settings") or {})
    blocks += _pairs("Versions", context.get("versions") or {})
    return blocks


def _pairs(title: str, values: Mapping[str, Any]) -> list[Block]:
    if not values:
        return []
    rows = []
    for name, value in values.items():
        parts = value if isinstance(value, list | tuple) else [value]
        text = ", ".join(x if isinstance(x, str) else json.dumps(x, default=str) for x in parts)
        rows.append(Row((Cell(str(name)), Cell(Verbatim(text)))))
    return [Table(title, ("what", "value"), tuple(rows), textual=True)]


def _model(results: Sequence[Result], context: Mapping[str, Any]) -> list[Block]:
    """The command that uses the best arm's model."""
    best, folder = best_run.best_run(results), context.get("folder")
    if best is None or folder is None:
        return []
    run = best_run.run_folder(Path(folder), best)
    setting = f", {setting_name(best)}" if best.get("setting") else ""
    name = f"`{best['arm']}`{setting}, seed {best['seed']}, the best of its seeds on validation"
    if not best_run.has_model(run):
        text = (
            f"The checkpoints of {name}, have been removed: run the study in a new folder, which "
            "keeps those of the best arm."
        )
        return [Paragraph(text)]
    place = shlex.quote(str(run))
    commands = (
        f"python -m mtl_jax predict --workdir {place} < texts.txt",
        f"python -m mtl_jax evaluate --workdir {place} --split {evaluation_split(results)}",
    )
    text = f"The model of {name}, is kept. `texts.txt` has a text in each line."
    return [Paragraph(text), Code("\n".join(commands))]
