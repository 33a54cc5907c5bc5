"""Sections on what runs predict: by class, whom they confuse, how sure they are, where they err.

They are of one run, for ``evaluate``, or of all seeds of an arm: then numbers are means over the
seeds, and the mistakes are those that the seeds make together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from mtl_jax.config.tasks import Kind
from mtl_jax.core.errors import shortened
from mtl_jax.runs import calibration, diagnosis
from mtl_jax.runs.predictions import Predictions, TaskPredictions
from mtl_jax.studies.report import prediction_figures
from mtl_jax.studies.report.cells import arm_cell, mean_cell
from mtl_jax.studies.report.document import Block, Cell, Paragraph, Row, Table, Verbatim
from mtl_jax.studies.report.figures import picture
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.text_errors import class_scores
from mtl_jax.training.kinds.multi_label import THRESHOLD
from mtl_jax.training.kinds.registry import KINDS

MISTAKES = 10
"""of each task that a report shows"""
_LONGEST_TEXT = 300
# Above it a matrix is no longer read: the pairs that are confused most stand in its place.
MOST_CLASSES = 25
_PAIRS = 20
_CALIBRATION = {
    "ece": "ECE",
    "temperature": "temperature",
    "ece_with_temperature": "ECE with it",
    "log_loss": "log-loss",
    "log_loss_with_temperature": "log-loss with it",
}


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the runs of one arm predict.

    Attributes:
        arm: What it is called.
        split: Which split the predictions are of.
        runs: By seed those of the split.
        validation: By seed those of validation, where they are known: what temperatures and
            thresholds are found on.
        texts: Gives texts of the split by their places, and lacks those that can't be read.
    """

    arm: str
    split: str
    runs: Mapping[int, Predictions]
    validation: Mapping[int, Predictions]
    texts: Callable[[Iterable[int]], Mapping[int, str]]

    @property
    def tasks(self) -> list[str]:
        """The tasks with labels."""
        first = next(iter(self.runs.values()))
        return [name for name, task in first.tasks.items() if len(diagnosis.labelled(task))]

    def of(self, task: str) -> dict[int, TaskPredictions]:
        """The predictions for a task, by seed."""
        return {seed: run.tasks[task] for seed, run in self.runs.items()}

    def held_out(self, task: str) -> dict[int, TaskPredictions]:
        """The same of validation, of the seeds that have them and where it has labels."""
        found = {s: self.validation[s].tasks[task] for s in self.runs if s in self.validation}
        return {seed: each for seed, each in found.items() if len(diagnosis.labelled(each))}

    def kind(self, task: str) -> Kind:
        """The kind of a task."""
        return next(iter(self.runs.values())).tasks[task].kind

    def is_value(self, task: str) -> bool:
        """Whether a task is a regression."""
        return self.kind(task) == "regression"

    @property
    def over(self) -> str:
        """What numbers are means of, for a note; empty of one run."""
        if len(self.runs) == 1:
            return ""
        return f"Means over {len(self.runs)} seeds ± half of the 95 % t interval over seeds alone. "

    @property
    def over_texts(self) -> str:
        """The same of scores whose intervals are over texts, too."""
        return self.over.replace("seeds alone", "seeds and texts")


# Scores by class.


def class_tables(answers: Answers) -> list[Block]:
    """Precision, recall, F1 and support of each class, by task; of regressions their residuals."""
    found: list[Block] = []
    for task in answers.tasks:
        if answers.is_value(task):
            found.append(_residual_table(answers, task))
        else:
            found.append(_class_table(answers, task))
    values = {t: list(answers.of(t).values()) for t in answers.tasks if answers.is_value(t)}
    if values:
        found.append(picture(prediction_figures.value_plot(values, answers.split)))
    return found


def _class_table(answers: Answers, task: str) -> Table:
    runs = answers.of(task)
    scores = {seed: class_scores(run) for seed, run in runs.items()}
    several = answers.kind(task) == "multi_label"
    at_best = _at_best_thresholds(answers, task) if several else {}
    rows = []
    for name, each in next(iter(scores.values())).items():
        cells = [
            mean_cell({seed: of[name][score] for seed, of in scores.items()})
            for score in ("precision", "recall", "f1")
        ]
        if several:
            cells += [mean_cell({s: of[name][k] for s, of in at_best.items()}) for k in (0, 1)]
        cells.append(Cell(f"{each['support']:,}"))
        rows.append(Row((Cell(Verbatim(name)), *cells)))
    never = [
        Verbatim(name)
        for name, each in next(iter(scores.values())).items()
        if each["support"] and not any(of[name]["recall"] for of in scores.values())
    ]
    note = answers.over_texts + f"Texts are those of the {answers.split} split."
    if never:
        note += f" Never predicted rightly: {formatting.series(never)}."
    if several:
        note += (
            f" A text has a class from a probability of {THRESHOLD:g} on; beside it the "
            "threshold with the best F1 on validation, and the F1 that it gives here."
        )
    columns = ("class", "precision", "recall", "F1")
    columns += ("threshold", "F1 with it") if several else ()
    title = f"{task}: scores by class on the {answers.split} split"
    return Table(title, (*columns, "texts"), tuple(rows), note)


def _at_best_thresholds(answers: Answers, task: str) -> dict[int, dict[str, tuple[float, float]]]:
    """By seed and class the best threshold on validation, and the F1 here with it."""
    runs, found = answers.of(task), {}
    for seed, validation in answers.held_out(task).items():
        thresholds = diagnosis.best_thresholds(validation)
        scores = diagnosis.per_class(diagnosis.with_thresholds(runs[seed], thresholds))
        pairs = zip(scores.items(), thresholds.tolist(), strict=True)
        found[seed] = {name: (threshold, each["f1"]) for (name, each), threshold in pairs}
    return found


def _residual_table(answers: Answers, task: str) -> Table:
    runs = answers.of(task)
    metrics = {s: KINDS[r.kind].metrics(r.gold, r.predicted, 0) for s, r in runs.items()}
    named = {"r2": "R2", "rmse": "RMSE", "mae": "MAE", "pearson": "Pearson", "spearman": "Spearman"}
    rows = [
        Row(
            (
                Cell(name),
                mean_cell({s: of[key] for s, of in metrics.items() if of[key] is not None}),
            )
        )
        for key, name in named.items()
    ]
    errors = {seed: diagnosis.residuals(run) for seed, run in runs.items()}
    rows += [
        Row(
            (
                Cell(f"error, {name}"),
                mean_cell({s: of[name] for s, of in errors.items()}, sign=name != "deviation"),
            )
        )
        for name in next(iter(errors.values()))
    ]
    note = (
        f"{answers.over}Errors are predictions minus labels, in the unit of the labels; "
        "percentages are quantiles. R2 and the correlations are 1 at best."
    )
    return Table(
        f"{task}: values on the {answers.split} split", ("what", "value"), tuple(rows), note
    )


def class_table_of_arms(arms: Sequence[Answers], task: str) -> Table:
    """F1 of each class, an arm to a row."""
    rows, names = [], ()
    for answers in arms:
        scores = {seed: class_scores(run) for seed, run in answers.of(task).items()}
        names = tuple(next(iter(scores.values())))
        cells = [mean_cell({s: of[name]["f1"] for s, of in scores.items()}) for name in names]
        rows.append(Row((arm_cell(answers.arm), *cells)))
    title = f"{task}: F1 of each class on the {arms[0].split} split, by arm"
    return Table(title, ("arm", *map(Verbatim, names)), tuple(rows), arms[0].over.rstrip())


# Confusion.


def confusion_tables(answers: Answers, width: int | None = None) -> list[Block]:
    """What the runs take for what, by task; nothing of regressions.

    Args:
        answers: The predictions.
        width: Characters that a matrix may be wide; by default any number.
    """
    tasks = [task for task in answers.tasks if not answers.is_value(task)]
    return [_confusion_table(answers, task, width) for task in tasks]


def _confusion_table(answers: Answers, task: str, width: int | None) -> Table:
    runs = answers.of(task)
    counts = np.mean([diagnosis.confusion(run) for run in runs.values()], axis=0)
    names = [Verbatim(name) for name in next(iter(runs.values())).classes]
    digits = 0 if len(runs) == 1 else 1
    of = "" if len(runs) == 1 else f", mean over {len(runs)} seeds"
    title = f"{task}: what is taken for what on the {answers.split} split"
    if answers.kind(task) == "multi_label":
        rows = [
            Row((Cell(name), *(Cell(formatting.fixed(float(n), digits)) for n in each)))
            for name, each in zip(names, counts[:, (1, 0, 1, 0), (1, 1, 0, 0)], strict=True)
        ]
        columns = (
            "class",
            "has it, predicted",
            "has it not, predicted",
            "has it, missed",
            "neither",
        )
        return Table(title, columns, tuple(rows), f"Numbers of texts{of}.")
    taken = 20 + sum(max(len(name), 5) + 3 for name in names)
    if len(names) > MOST_CLASSES or (width is not None and taken > width):
        return _confused_pairs(title, names, counts, of)
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
    rows = [
        Row(
            (
                Cell(name),
                *(
                    Cell(formatting.fixed(float(n), digits), shade=float(n / total))
                    for n in of_label
                ),
            )
        )
        for name, of_label, (total,) in zip(names, counts, totals, strict=True)
    ]
    note = f"Numbers of texts{of}: a row for each label, a column for each prediction."
    return Table(title, ("label \N{RIGHTWARDS ARROW} prediction", *names), tuple(rows), note)


def _confused_pairs(title: str, names: Sequence[Verbatim], counts: np.ndarray, of: str) -> Table:
    """The pairs that are confused most, of more classes than a matrix is read with."""
    wrong = counts * (1 - np.eye(len(counts)))
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]:
        label, taken = np.unravel_index(place, wrong.shape)
        if (count := wrong[label, taken]) > 0:
            part = f"{100 * count / counts[label].sum():.0f} %"
            texts = formatting.fixed(float(count), 1)
            cells = (names[int(label)], names[int(taken)], texts, part)
            rows.append(Row(tuple(map(Cell, cells))))
    columns = ("label", "taken for", "texts", "of those with the label")
    note = f"The {len(rows)} pairs of {len(names)} classes that are confused most often{of}."
    return Table(title, columns, tuple(rows), note, textual=True)


# Calibration.


def calibration_blocks(answers: Answers, others: Sequence[Answers] = ()) -> list[Block]:
    """ECE and temperature by task, the reliability picture and its table.

    Args:
        answers: Those that are looked at closely.
        others: Of other arms, which the first table shows beside it.
    """
    tasks = [task for task in answers.tasks if not answers.is_value(task)]
    if not tasks:
        return [Paragraph("No task has probabilities: a regression predicts values.")]
    arms = list(others) or [answers]
    rows = [
        Row(
            (
                arm_cell(each.arm) if others else Cell(task),
                *([Cell(task)] if others else []),
                *_calibration_cells(each, task),
            ),
            "chosen" if others and each.arm == answers.arm else "",
        )
        for task in tasks
        for each in arms
    ]
    columns = (
        ("arm", "task", *_CALIBRATION.values()) if others else ("task", *_CALIBRATION.values())
    )
    note = (
        f"{answers.over}ECE, the expected calibration error: how far the confidence of "
        f"predictions is from the fraction that is right, in {calibration.BINS} bins of equal "
        "width (Guo et al. 2017); 0 is the best. A temperature divides the logits: above 1 the "
        "runs are too sure, below 1 not sure enough; no prediction changes. It is fitted on "
        f"validation by the log-loss, and never on the {answers.split} split."
        if answers.split != "validation"
        else "ECE, the expected calibration error (Guo et al. 2017). The temperature is fitted on "
        "these very texts, the validation split: what it mends is flattered."
    )
    found: list[Block] = [
        Table(f"Calibration on the {answers.split} split", columns, tuple(rows), note)
    ]
    drawn = prediction_figures.reliability_plot(
        {task: list(answers.of(task).values()) for task in tasks}, answers.split
    )
    found.append(picture(drawn))
    return [*found, *(_reliability_table(answers, task) for task in tasks)]


def _calibration_cells(answers: Answers, task: str) -> list[Cell]:
    numbers: dict[str, dict[int, float]] = {name: {} for name in _CALIBRATION}
    validation = answers.held_out(task)
    for seed, run in answers.of(task).items():
        found = calibration.calibrated(run, validation.get(seed))
        for name in _CALIBRATION:
            if (value := getattr(found, name)) is not None:
                numbers[name][seed] = value
    return [mean_cell(of_name) for of_name in numbers.values()]


def _reliability_table(answers: Answers, task: str) -> Table:
    pairs = [calibration.confidences(run) for run in answers.of(task).values()]
    confidence, right = (np.concatenate(each) for each in zip(*pairs, strict=True))
    rows = [
        Row(
            (
                Cell(f"{each.low:.2f} to {each.high:.2f}"),
                Cell(f"{each.count:,}"),
                Cell(formatting.fixed(each.confidence)),
                Cell(formatting.fixed(each.accuracy)),
                Cell(formatting.signed(each.accuracy - each.confidence)),
            )
        )
        for each in calibration.reliability(confidence, right)
    ]
    several = answers.kind(task) == "multi_label"
    columns = ("confidence", "predictions", "mean confidence", "right", "right minus confidence")
    note = "Probabilities of every class of every text." if several else ""
    note += " All seeds together." if len(answers.runs) > 1 else ""
    return Table(f"{task}: reliability", columns, tuple(rows), note.strip())


# Mistakes.


def mistake_tables(answers: Answers) -> list[Block]:
    """The surest mistakes of each task with their texts, or the ids of these."""
    found: list[Block] = []
    for task in answers.tasks:
        runs = list(answers.of(task).values())
        mistakes = diagnosis.mistakes(runs, MISTAKES)
        if not mistakes:
            found.append(Paragraph(f"{task}: there is none."))
            continue
        texts = answers.texts([each.place for each in mistakes])
        examples = next(iter(answers.runs.values())).examples
        value = answers.is_value(task)
        rows = []
        for each in mistakes:
            text = texts.get(each.place)
            name = (
                f"example {examples[each.place]}"
                if text is None
                else shortened(text, _LONGEST_TEXT)
            )
            size = formatting.signed(each.size) if value else formatting.fixed(each.size)
            cells = [Cell(Verbatim(x)) for x in (name, each.label, each.predicted)]
            cells.append(Cell(size))
            cells += [Cell(f"{each.runs} of {len(runs)}")] if len(runs) > 1 and not value else []
            rows.append(Row(tuple(cells)))
        columns = ("text", "label", "predicted", "error" if value else "probability")
        columns += ("wrong in seeds",) if len(runs) > 1 and not value else ()
        what = "largest errors" if value else "most confident mistakes"
        notes = []
        if len(runs) > 1:
            notes.append("Predictions are the means over the seeds.")
        if answers.kind(task) == "multi_label":
            notes.append("A row is a text and one class: 'not x' means that class x is missed.")
        if any(each.place not in texts for each in mistakes):
            notes.append(
                "Where the data can't be read any more, the row of the text in its split is shown."
            )
        title = f"{task}: the {what} on the {answers.split} split"
        found.append(Table(title, columns, tuple(rows), " ".join(notes), textual=True))
    return found
