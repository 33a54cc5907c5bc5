"""What tuning leaves in a study's folder: every trial, and what was chosen for each arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.core.errors import cannot_write
from mtl_jax.core.json_files import append_line, read_json, read_lines, rewrite_lines, write_json
from mtl_jax.studies.settings import Arm

TRIALS, FOLDER = "tuning.jsonl", "tuning"
_TRIAL = {"type": "object", "required": ["arm", "trial", "rates", "flops", "validation"]}
_CHOSEN = {"type": "object", "required": ["chosen"], "properties": {"chosen": {"type": "object"}}}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a search.

    Attributes:
        rates: What was tried, by the name of the setting.
        length: The settings of its length.
        validation: Its score on validation, the mean over tasks of macro-F1 or R2, of the
            measurement that is kept; None where the loss was not finite.
        curve: ``(part of its steps, score)`` of each measurement.
        flops: Training FLOPs that it took.
        pruned: Whether it was ended early.
    """

    rates: Mapping[str, float]
    length: Mapping[str, int]
    validation: float | None
    curve: Sequence[tuple[float, float]]
    flops: float
    pruned: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What it was run with, as fields of ``TrainConfig``."""
        return {**self.rates, **self.length}


class TuningRecord:
    """The trials of one arm of a study, in one setting, whatever the seed.

    Args:
        folder: Of the study.
        arm: The arm, with any seed.
    """

    def __init__(self, folder: Path, arm: Arm):
        self._study = folder
        self._of = {"arm": arm.name, **({"setting": dict(arm.setting)} if arm.setting else {})}
        name = Path(arm.config.workdir).name.rpartition("-seed")[0]
        self.folder = folder / FOLDER / name
        self._lines, self._chosen = self.folder / "trials.jsonl", self.folder / "chosen.json"

    @property
    def name(self) -> str:
        """A name that no other search of the study has."""
        return self.folder.name

    def trials(self) -> list[Trial]:
        """Those that have ended, in their order."""
        fields = [field.name for field in dataclasses.fields(Trial)]
        return [
            Trial(**{name: line[name] for name in fields})
            for line in read_lines(self._lines, _TRIAL)
        ]

    def add(self, number: int, trial: Trial, seed: int) -> None:
        """Leaves a trial on the disk."""
        line = {**self._of, "seed": seed, "trial": number, **dataclasses.asdict(trial)}
        append_line(self._lines, line)

    def prepare(self) -> None:
        """Makes its folder, and drops a line that a kill left unfinished.

        Raises:
            UserError: It can't be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        rewrite_lines(self._lines, read_lines(self._lines, _TRIAL))

    def choose(self, budget: str) -> dict[str, Any]:
        """Leaves the best trial as what the arm is trained with, and returns it."""
        found = {**self._of, "budget": budget, **chosen_of(self.trials())}
        write_json(self._chosen, found)
        gather_trials(self._study)
        return found

    def is_done(self) -> bool:
        """Whether it has been chosen."""
        return self._chosen.exists()

    def chosen(self) -> dict[str, Any] | None:
        """What was chosen; None where that is still to be done."""
        if not self.is_done():
            return None
        return read_json(self._chosen, _CHOSEN, "remove it: the trials are looked at again")


def gather_trials(folder: Path) -> None:
    """Writes ``tuning.jsonl`` anew from the trials of all arms, which have files of their own.

    Where several workers do at once, one that has seen less may be the last: it is done again
    before the report.
    """
    if found := sorted((folder / FOLDER).glob("*/trials.jsonl")):
        lines = [line for each in found for line in read_lines(each, _TRIAL)]
        rewrite_lines(folder / TRIALS, lines)


def chosen_of(trials: Sequence[Trial]) -> dict[str, Any]:
    """The best of some trials, and what may be wrong with it.

    Returns:
        ``chosen``, the settings, ``{}`` where no trial has a score; ``validation``, its score;
        ``trials`` and ``flops``, of all of them; ``at_edge``, the rates that are the lowest or
        the highest of three or more that were tried; ``longest``, whether no longer run was tried.
    """
    scored = [t for t in trials if t.validation is not None and not t.pruned]
    common = {"trials": len(trials), "flops": sum(trial.flops for trial in trials)}
    if not scored:
        return {"chosen": {}, "validation": None, **common, "at_edge": [], "longest": False}
    # Of equal ones the first.
    best = max(scored, key=lambda trial: trial.validation or 0.0)
    edges = []
    for field, rate in best.rates.items():
        tried = {trial.rates[field] for trial in trials}
        # Of two, one that is chosen is at the edge whatever it is.
        if len(tried) > 2 and rate in (min(tried), max(tried)):
            edges.append(field)
    lengths = {trial.length["epochs"] for trial in trials}
    longest = len(lengths) > 1 and best.length["epochs"] == max(lengths)
    return {
        "chosen": best.settings,
        "validation": best.validation,
        **common,
        "at_edge": edges,
        "longest": longest,
    }


def applied(arm: Arm, found: Mapping[str, Any] | None) -> Arm:
    """The arm with what was chosen for it; as it is where nothing was."""
    if not found:
        return arm
    config = dataclasses.replace(arm.config, **found["chosen"])
    return dataclasses.replace(arm, config=config, tuned=dict(found))
