"""A finished run on a split of its data: by class, how sure it is, and where it errs."""

from __future__ import annotations

import csv
import dataclasses
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.core.atomic_write import atomic_write
from mtl_jax.core.errors import cannot_write
from mtl_jax.data.examples import Examples
from mtl_jax.runs import calibration, diagnosis
from mtl_jax.runs.predictions import (
    Predictions,
    TaskPredictions,
    read_predictions,
    write_predictions,
)
from mtl_jax.runs.workdir import Workdir
from mtl_jax.studies.report import prediction_sections
from mtl_jax.studies.report.document import (
    Block,
    Cell,
    Document,
    Heading,
    Paragraph,
    Row,
    Table,
    Verbatim,
)
from mtl_jax.studies.report.prediction_sections import Answers
from mtl_jax.studies.report.write import write_document
from mtl_jax.studies.stats import formatting
from mtl_jax.tools.ensemble import Ensemble
from mtl_jax.tools.predict import Predictor
from mtl_jax.training.kinds.base import Metrics
from mtl_jax.training.metrics import of_metrics

MISTAKES = 20
"""of each task that a record has"""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a run does on a split.

    Attributes:
        run: Its folder.
        split: The split.
        metrics: As of ``Predictor.evaluate``.
        predictions: Those of the split.
        validation: Those of validation.
        examples: The split.
        made_with: What of the run a reader asks for: scenario, seed, versions and so on.
    """

    run: Path
    split: str
    metrics: Metrics
    predictions: Predictions
    validation: Predictions
    examples: Examples
    made_with: Mapping[str, str]

    @property
    def answers(self) -> Answers:
        """What sections of a report are made of."""
        runs, validation = {0: self.predictions}, {0: self.validation}
        return Answers(self.run.name, self.split, runs, validation, self._texts)

    def _texts(self, places: Iterable[int]) -> dict[int, str]:
        return {place: str(self.examples.texts[place]) for place in places}

    def record(self) -> dict[str, Any]:
        """The metrics of each task, with what is behind them, as JSON."""
        return {
            task: {**self._details(task), **of_task} if of_task["examples"] else dict(of_task)
            for task, of_task in self.metrics.items()
        }

    def _details(self, task: str) -> dict[str, Any]:
        found, held_out = self.predictions.tasks[task], self.validation.tasks[task]
        mistakes = [self._mistake(found, each) for each in diagnosis.mistakes([found], MISTAKES)]
        if found.kind == "regression":
            return {"residuals": diagnosis.residuals(found), "mistakes": mistakes}
        counts = diagnosis.confusion(found).tolist()
        details: dict[str, Any] = {
            "confusion": {"classes": list(found.classes), "counts": counts},
            "calibration": {
                **dataclasses.asdict(calibration.calibrated(found, held_out)),
                "fitted_on": "validation",
                "reliability": [
                    dataclasses.asdict(each)
                    for each in calibration.reliability(*calibration.confidences(found))
                ],
            },
            "mistakes": mistakes,
        }
        if found.kind == "multi_label":
            best = diagnosis.best_thresholds(held_out)
            scores = diagnosis.per_class(diagnosis.with_thresholds(found, best))
            details["thresholds"] = {
                name: {"threshold": threshold, "f1": of_class["f1"]}
                for (name, of_class), threshold in zip(scores.items(), best.tolist(), strict=True)
            }
        return details

    def _mistake(self, found: TaskPredictions, each: diagnosis.Mistake) -> dict[str, Any]:
        size = "error" if found.kind == "regression" else "probability"
        return {
            "example": int(self.predictions.examples[each.place]),
            "text": str(self.examples.texts[each.place]),
            "label": each.label,
            "predicted": each.predicted,
            size: each.size,
        }

    def sections(self, width: int | None = None) -> list[tuple[str, Sequence[Block]]]:
        """What a report has, section by section, beside the metrics.

        Args:
            width: Columns that a confusion matrix may take; by default any number.
        """
        answers = self.answers
        found = [
            ("Scores by class", prediction_sections.class_tables(answers)),
            ("Scores by source", self._by_source()),
            ("Confusion matrices", prediction_sections.confusion_tables(answers, width)),
            ("Calibration", prediction_sections.calibration_blocks(answers)),
            ("The most confident mistakes", prediction_sections.mistake_tables(answers)),
        ]
        return [(title, blocks) for title, blocks in found if blocks]

    def _by_source(self) -> list[Block]:
        found: list[Block] = []
        for task, of_task in self.metrics.items():
            if by_source := of_task.get("weighted_f1_by_source"):
                rows = [
                    Row((Cell(Verbatim(source)), Cell(formatting.fixed(value))))
                    for source, value in by_source.items()
                ]
                title = f"{task}: weighted F1 by source"
                found.append(Table(title, ("source", "weighted F1"), tuple(rows)))
        return found

    def document(self) -> Document:
        """The same as a page."""
        words = [
            f"{task} {of_metrics(of_task).in_words(of_task)} on {of_task['examples']:,} texts"
            for task, of_task in self.metrics.items()
            if of_task["examples"]
        ]
        blocks: list[Block] = [Paragraph(f"On the {self.split} split: {'; '.join(words)}.", "lead")]
        for title, section in self.sections():
            blocks += [Heading(title), *section]
        rows = [Row((Cell(name), Cell(Verbatim(text)))) for name, text in self.made_with.items()]
        table = Table("", ("what", "value"), tuple(rows), textual=True)
        blocks += [Heading("How this was made"), table]
        return Document(f"What {self.run.name} does", f"the {self.split} split", tuple(blocks))

    def write(self, folder: Path) -> Path:
        """Leaves the page, its pictures, the numbers and the predictions in a folder.

        These are ``report.html`` and ``report.md``, ``metrics.json``, ``classes.csv``,
        ``confusion.csv``, ``reliability.csv``, ``mistakes.csv`` and
        ``predictions-<split>.parquet``.

        Returns:
            The path of ``report.html``.

        Raises:
            UserError: Something can't be written.
        """
        record = self.record()
        try:
            page = write_document(folder, self.document())
            _write(folder / "metrics.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
            for name, columns, rows in _tables(record):
                _write_csv(folder / f"{name}.csv", columns, rows)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return page


def evaluate(model: Predictor | Ensemble, split: str, output: Path | None = None) -> Evaluation:
    """Predicts a split of the data that a run was trained on, and looks at the predictions.

    Args:
        model: The run, or several together.
        split: ``train``, ``validation`` or ``test``.
        output: A folder to leave the predictions in; by default they are left nowhere.

    Raises:
        UserError: As of ``Predictor.evaluate``; or they can't be written.
    """
    metrics, examples, found = _predicted(model, split, output)
    if split == "validation":
        validation = found
    elif (kept := model.kept("validation")) is not None:
        validation = read_predictions(kept)
    else:
        validation = _predicted(model, "validation", None)[2]
    return Evaluation(model.folder, split, metrics, found, validation, examples, _made_with(model))


def _predicted(
    model: Predictor | Ensemble, split: str, output: Path | None
) -> tuple[Metrics, Examples, Predictions]:
    metrics, examples, logits, sources = model.measure(split)
    with tempfile.TemporaryDirectory() as place:
        try:
            if output is not None:
                output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(output or Path(place), error) from error
        path = (output or Path(place)) / f"predictions-{split}.parquet"
        write_predictions(path, examples, logits, model.tasks, sources)
        # From the file: whoever has that has the same numbers.
        return metrics, examples, read_predictions(path)


def _made_with(model: Predictor | Ensemble) -> dict[str, str]:
    if isinstance(model, Ensemble):
        first, *others = map(_made_with, model.members)
        # What all have in common.
        alike = {k: v for k, v in first.items() if all(each.get(k) == v for each in others)}
        return {"runs": ", ".join(str(each.folder) for each in model.members), **alike}
    record = Workdir(model.folder).config()
    settings, versions = record["settings"], record["environment"]["versions"]
    named = ("scenario", "recipe", "seed", "backbone")
    found = {"run": str(model.folder)}
    found |= {name: str(settings[name]) for name in named if settings.get(name) is not None}
    found["data"] = str(record["data"].get("name", ""))
    return found | {
        "mtl_jax": str(record.get("mtl_jax")),
        **{k: str(v) for k, v in versions.items()},
    }


_Rows = list[tuple[Any, ...]]


def _tables(record: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], _Rows]]:
    """The numbers of a record as tables: name, columns, rows."""
    classes: _Rows = []
    confusion: _Rows = []
    bins: _Rows = []
    mistakes: _Rows = []
    scores = ("precision", "recall", "f1", "support", "predicted")
    of_bin = ("low", "high", "count", "confidence", "accuracy")
    for task, found in record.items():
        for name, of_class in (found.get("per_class") or {}).items():
            classes.append((task, name, *(of_class[score] for score in scores)))
        known = found.get("confusion") or {"classes": [], "counts": []}
        for name, counts in zip(known["classes"], known["counts"], strict=True):
            if isinstance(counts[0], list):
                marks = (name, f"not {name}")
                pairs = ((0, 0, 1, 1), (0, 1, 0, 1), (1, 1, 0, 0), (1, 0, 1, 0))
                confusion += [
                    (task, marks[label], marks[guess], counts[row][column])
                    for label, guess, row, column in pairs
                ]
            else:
                confusion += [
                    (task, name, other, count)
                    for other, count in zip(known["classes"], counts, strict=True)
                ]
        for each in (found.get("calibration") or {}).get("reliability", ()):
            bins.append((task, *(each[name] for name in of_bin)))
        for each in found.get("mistakes", ()):
            size = each.get("probability", each.get("error"))
            mistakes.append(
                (task, each["example"], each["label"], each["predicted"], size, each["text"])
            )
    return [
        ("classes", ("task", "class", *scores), classes),
        ("confusion", ("task", "label", "predicted", "texts"), confusion),
        ("reliability", ("task", *of_bin), bins),
        (
            "mistakes",
            ("task", "example", "label", "predicted", "probability_or_error", "text"),
            mistakes,
        ),
    ]


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as draft:
        draft.write_text(text, "utf-8", "backslashreplace")


def _write_csv(path: Path, columns: Sequence[str], rows: _Rows) -> None:
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
