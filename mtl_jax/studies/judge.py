"""Judges a study again from what it has left: its results and its predictions, without training."""

from __future__ import annotations

import dataclasses
import gzip
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from mtl_jax.config.data import refuse_blank
from mtl_jax.core.atomic_write import check_folder
from mtl_jax.core.command_line import parse
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, cannot_write
from mtl_jax.core.json_files import read_json, write_json
from mtl_jax.core.paths import expanded
from mtl_jax.studies.arm_predictions import ArmPredictions, predictions_path, recomputed
from mtl_jax.studies.ensembles import FOLDER as OF_ENSEMBLES
from mtl_jax.studies.ensembles import keep_ensembles
from mtl_jax.studies.results_store import BASELINES, OF_BASELINES
from mtl_jax.studies.settings import Report
from mtl_jax.studies.stats.formatting import count_of
from mtl_jax.studies.stats.results import SPLITS, Result, read_results, results_file
from mtl_jax.studies.text_errors import with_text_errors
from mtl_jax.studies.work_queue import FOLDER as CLAIMS

# What a report says beside the results, and the trials of what was tuned.
_RECORD, _TRIALS = "study.json", "tuning.jsonl"
_SCHEMA = {
    "type": "object",
    "required": ["context", "failures"],
    "properties": {
        "context": {"type": "object"},
        "failures": {"type": "array", "items": {"type": "object", "required": ["arm", "seed"]}},
    },
}
# What a process knows only for as long as it lives.
_OF_THE_PROCESS = ("folder", "corpora")
_KEPT_SPLITS = tuple(split for split in SPLITS if split != "train")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """Write the report of a study again, from its results and predictions alone."""

    study: Positional[str]
    """folder of the study, or the folder in which --keep has left one"""
    output: str | None = None
    """folder for the report; by default that of the study"""
    keep: str | None = None
    """also copy what a report is written from to this folder: the results, compressed, and the \
predictions on validation and test"""
    digits: int | None = None
    """with --keep: round probabilities to so many significant digits, such as 2, which takes far \
less room; reports then show the calibration errors of the results, and do not compute them again"""


def judge_study(argv: Sequence[str]) -> int:
    """Runs ``mtl-jax study judge DIR [flags]``; returns the exit status.

    Raises:
        UserError: The folder holds no study that can be judged, or the flags are wrong.
    """
    called = "mtl-jax study judge"
    asked = parse(Judge, argv, called, Judge.__doc__ or "")
    folder, places = expanded(asked.study), {}
    for name in ("output", "keep"):
        if (value := getattr(asked, name)) is not None:
            refuse_blank(name, [value])
            places[name] = expanded(value)
            check_folder(places[name], f"--{name}")
    if "keep" in places:
        _refuse_itself(folder, places["keep"])
    path = judge(folder, places.get("output"))
    say(f"the report is {path}")
    if "keep" in places:
        keep(folder, places["keep"], asked.digits)
    return 0


def _refuse_itself(folder: Path, place: Path) -> None:
    """Refuses to leave in a study's folder what would take the place of its own files."""
    if folder.resolve() == place.resolve():
        raise UserError(f"--keep {place} is the folder of the study itself: name another")


def judge(folder: Path, output: Path | None = None) -> Path:
    """Writes the report of a study, as the study itself did, and trains nothing.

    Every score is computed again from the predictions; where that is another number than the one in
    ``results.jsonl``, this is said and the computed one counts.

    Args:
        folder: Of the study, or what ``keep`` has left of one.
        output: Where to write it; by default into ``folder``.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: Something in it can't be read, or it has no results.
    """
    file = results_file(folder)
    if not file.exists() and (folder / CLAIMS).is_dir():
        raise UserError(
            f"{folder} has no results yet: run the study with --gather first, which collects what "
            "its workers have done"
        )
    noted, opened = read_results(file), ArmPredictions(folder)
    if not noted:
        raise UserError(f"{folder} has no results yet: judge it when an arm is done")
    results = [recomputed(line, opened) for line in noted]
    for before, now in zip(noted, results, strict=True):
        if before != now:
            splits = [split for split in SPLITS if before.get(split) != now.get(split)]
            say(
                f"warning: {before['arm']}, seed {before['seed']}: what is computed from its "
                f"predictions on {' and '.join(splits)} is not what its results say"
            )
    _say_missing(noted, folder)
    known = _known(folder)
    context = {**known["context"], "folder": folder}
    report = report_of(results, context.get("study"))
    lines = with_text_errors(folder, results, opened)
    return report(output or folder, lines, known["failures"], context)


def _say_missing(lines: Sequence[Result], folder: Path) -> None:
    """Says of which scores the predictions are gone, so that they can't be computed again."""
    for split in _KEPT_SPLITS:
        asked = [line for line in lines if line.get(split)]
        missing = sum(not predictions_path(folder, line, split).exists() for line in asked)
        if missing:
            say(
                f"note: {count_of(missing, 'run')} of {len(asked)} left no predictions on {split}: "
                "the scores on it are those of the results, and are not computed again"
            )


def _known(folder: Path) -> dict[str, Any]:
    """What the study's report said beside its results."""
    if (record := folder / _RECORD).exists():
        return read_json(record, _SCHEMA, "remove it, and the report will lack what it says")
    return {"context": {}, "failures": []}


def report_of(results: Sequence[Result], study: str | None = None) -> Report:
    """What writes the report of a study, by its name or the settings of its lines.

    Args:
        results: Its lines.
        study: Its name, where that is known.

    Raises:
        UserError: There is no report of such results.
    """
    from mtl_jax.studies.report import (
        backbones_report,
        quality_report,
        scarce_report,
        unfreezing_report,
        write,
    )

    if study == quality_report.STUDY:
        return quality_report.leave_report
    names = {name for line in results for name in line.get("setting") or {}}
    for report in (unfreezing_report, scarce_report, backbones_report):
        if report.SETTING in names:
            return report.leave_report
    if names:
        raise UserError(
            f"results with the settings {', '.join(sorted(names))} are of a study that has no "
            "report of many runs: name the folder of another one"
        )
    return write.leave_report


def note_circumstances(
    folder: Path, failures: Sequence[Mapping[str, Any]], context: Mapping[str, Any]
) -> None:
    """Leaves ``study.json``: what a report says beside the results.

    Args:
        folder: Of the study.
        failures: Arms without a result.
        context: See ``settings.Report``.
    """
    said = {name: value for name, value in context.items() if name not in _OF_THE_PROCESS}
    write_json(folder / _RECORD, {"context": said, "failures": list(failures)})


def keep(folder: Path, place: Path, digits: int | None = None) -> None:
    """Leaves what a study is judged from in another folder, to be kept or given to others.

    Args:
        folder: Of the study.
        place: Where ``results.jsonl.gz``, ``study.json``, ``tuning.jsonl``, ``baselines.jsonl`` and
            the predictions on validation and test, those of baselines too, are left; what is there
            already of an arm is replaced.
        digits: Significant digits of the probabilities; by default all.

    Raises:
        UserError: Something can't be read or written, or ``place`` is the study's folder.
    """
    # With pyarrow, which no help waits for.
    from mtl_jax.runs.predictions import copy_rounded
    from mtl_jax.studies.report.quality_report import STUDY as QUALITY

    _refuse_itself(folder, place)
    results = results_file(folder)
    lines = read_results(results)
    try:
        place.mkdir(parents=True, exist_ok=True)
        content = results.read_bytes()
        # Without a time, so that what is the same stays the same file.
        packed = content if results.suffix == ".gz" else gzip.compress(content, mtime=0)
        (place / "results.jsonl.gz").write_bytes(packed)
        for name in (_RECORD, _TRIALS, BASELINES):
            if (folder / name).exists():
                shutil.copyfile(folder / name, place / name)
        found = [predictions_path(folder, line, each) for line in lines for each in _KEPT_SPLITS]
        for split in _KEPT_SPLITS:
            for name in (OF_BASELINES, OF_ENSEMBLES):
                found += sorted((folder / name).glob(f"*/predictions-{split}.parquet"))
        for path in filter(Path.exists, found):
            copy = place / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if digits is None:
                shutil.copyfile(path, copy)
            else:
                copy_rounded(path, copy, digits)
        if digits is not None and _known(folder)["context"].get("study") == QUALITY:
            keep_ensembles(folder, place, _KEPT_SPLITS, digits)
    except OSError as error:
        raise cannot_write(place, error) from error
