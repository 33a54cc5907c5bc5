"""What a study's folder tells of its arms: ``results.jsonl``, the arms' own folders, failures."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.config.train import TrainConfig
from mtl_jax.core import distributed
from mtl_jax.core.atomic_write import atomic_write
from mtl_jax.core.command_line import one_line
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, cannot_write
from mtl_jax.core.json_files import (
    append_line,
    read_json,
    read_lines,
    rewrite_lines,
    write_first,
    write_json,
)
from mtl_jax.runs.workdir import SHARED, Workdir
from mtl_jax.studies import best_run
from mtl_jax.studies.leases import Standing, standings
from mtl_jax.studies.settings import DONE, Arm, Key, Plan
from mtl_jax.studies.stats.results import RESULT
from mtl_jax.studies.text_errors import with_text_errors
from mtl_jax.studies.work_queue import ARMS, FOLDER, Unit, undo, why_lacking

# What the identity of an arm says in a run's place.
_SAID = ("event", "scenario", "recipe", "seed")
WEIGHTS = "weights_sha256"
BASELINES, OF_BASELINES = "baselines.jsonl", "baselines"
Texts = tuple[int | None, tuple[tuple[str, Any], ...]]
"""The number of a draw of training texts, and the setting of an arm."""
# What a worker leaves in the folder of an arm, beside what the run leaves there.
_LEFT = "result.json"
_OF_WORKER = {
    "type": "object",
    "required": ["devices", "line"],
    "properties": {
        "devices": {"type": "array", "items": {"type": "string"}},
        "line": {**RESULT, "required": [*RESULT["required"], WEIGHTS]},
    },
}


class ResultsStore:
    """The arms of a study that are done, and those that failed since it was opened.

    Attributes:
        folder: Of the study.
        alone: Whether no other process is at work in arms of it meanwhile.
        arms: All of them, in the order in which they are trained.
        tasks: All of those that an arm has.
        failures: The identity of each that failed, with ``error``, and ``skipped`` where
            nothing of it could be read.
        weights: Per backbone the digest of the weights that there are results of.
        inputs: A run for each of the inputs that the arms have, by the number of these.
        devices: On what the arms that workers have left were trained, each kind once.
    """

    def __init__(self, plan: Plan, folder: Path, *, alone: bool = True):
        self.folder, self.alone = folder, alone
        self.arms: list[Arm] = [arm for group in plan.groups for arm in group]
        self.failures: list[dict[str, Any]] = []
        self.weights: dict[str, str] = {}
        self.devices: dict[str, None] = {}
        # An arm may do without some of the tasks.
        self.tasks = max((arm.config.data.tasks for arm in self.arms), key=len, default=())
        self._results = folder / "results.jsonl"
        self._asked = {arm.key for arm in self.arms}
        self._numbers = {arm.key: number for number, arm in enumerate(self.arms, start=1)}
        self.inputs: list[TrainConfig] = []
        self._inputs: dict[tuple[Any, ...], int] = {}
        for first, *_ in plan.groups:
            if self._inputs.setdefault(_reads(first.config), len(self.inputs)) == len(self.inputs):
                self.inputs.append(first.config)
        self._keep_checkpoints = plan.keep_checkpoints
        self._models = best_run.BestModels(self.arms)
        lines = distributed.call_on_main(self._lines)
        done = {_key(line): line.get(WEIGHTS) for line in lines}
        for arm in self.arms:
            if digest := done.get(arm.key):
                self.weights[arm.config.backbone] = digest
        self._done = set(done)

    @functools.cached_property
    def baselines(self) -> set[Texts]:
        """The texts with baselines in ``baselines.jsonl``, and those that this process has tried.

        Raises:
            UserError: A line of that file is damaged.
        """
        return {texts_of_line(line) for line in read_lines(self.folder / BASELINES)}

    def _lines(self) -> list[dict[str, Any]]:
        return read_lines(self._results, RESULT)

    def results(self) -> list[dict[str, Any]]:
        """The lines of ``results.jsonl`` that are of arms of this study; see ``text_errors``."""
        lines = [line for line in self._lines() if _key(line) in self._asked]
        return with_text_errors(self.folder, lines)

    def waiting(self, groups: Sequence[Sequence[Arm]]) -> list[list[Arm]]:
        """What of these groups has no line there yet."""
        todo = [[arm for arm in group if arm.key not in self._done] for group in groups]
        return [group for group in todo if group]

    def place(self, arm: Arm) -> str:
        """``arm 3 of 7``."""
        return f"arm {self._numbers[arm.key]} of {len(self.arms)}"

    def add(self, arm: Arm, outcome: Mapping[str, Any]) -> None:
        """Keeps an arm's result as a line of ``results.jsonl``, or notes that it failed."""
        if "error" in outcome:
            self.failed(arm, outcome)
            return
        if not distributed.is_main():
            return
        line = _line(arm, outcome)
        # First: an arm with a line is not opened again, and what a kill had left would stay. Not
        # at the next call either: it may have other wishes than the one that trained the arm.
        self._clear(arm)
        append_line(self._results, line)

    def leave(self, arm: Arm, outcome: Mapping[str, Any]) -> None:
        """Leaves an arm's result in its own folder, for ``collect``, or notes that it failed."""
        if "error" in outcome:
            self.failed(arm, outcome)
            return
        if not distributed.is_main():
            return
        workdir = Workdir(arm.config.workdir)
        kinds = Counter(workdir.config()["environment"]["devices"])
        devices = [f"{count} x {kind}" for kind, count in kinds.items()]
        line = _line(arm, outcome)
        # First, as in ``add``.
        self._clear(arm)
        write_json(workdir.path / _LEFT, {"devices": devices, "line": line})

    def prepare(self) -> None:
        """Drops a line that a kill left unfinished, and collects what workers have left."""
        # The next line would else be glued to that one.
        rewrite_lines(self._results, self._lines())
        self.collect()

    def collect(self) -> list[tuple[int, dict[str, Any]]]:
        """Makes lines of ``results.jsonl``, in the order of the arms, of what workers have left.

        Returns:
            Of each arm that has no result its place among all, and its failure.
        """
        kept, failures = self._lines(), []
        known = standings(self.folder / FOLDER)
        for place, arm in enumerate(self.arms):
            if arm.key not in self._done:
                found = self._left(arm, known.get(arm.claim, Standing()))
                if "error" in found:
                    failures.append((place, found))
                else:
                    kept.append(found)
        if len(kept) > len(self._done):
            self._done |= {_key(line) for line in kept}
            kept.sort(key=lambda line: self._numbers.get(_key(line), math.inf))
            rewrite_lines(self._results, kept)
        return failures

    def _left(self, arm: Arm, known: Standing) -> dict[str, Any]:
        """The line that a worker has left of an arm, or why there is none."""
        file, folder = Path(arm.config.workdir) / _LEFT, self.folder / FOLDER
        try:
            if not file.exists():
                undo(folder, arm.claim, known)
                return why_lacking(folder, arm.claim, known)
            left = read_json(file, _OF_WORKER, f"remove {file.parent} and {folder}/{arm.claim}.*")
        except UserError as error:  # one arm must not take the others with it
            return {"error": one_line(error)}
        self.devices |= dict.fromkeys(left["devices"])
        return self.other_weights(arm, left["line"][WEIGHTS]) or left["line"]

    def failed(self, arm: Arm, failure: Mapping[str, Any]) -> None:
        """Notes that an arm failed, and says so."""
        self.failures.append({**arm.identity, **failure})
        say(f"arm {self._numbers[arm.key]} failed: {failure['error']}")

    def outdone(self, workdir: str, score: float) -> bool:
        """Whether the model of a run with such a validation score would be removed at its end."""
        return not self._keep_checkpoints and self._models.outdone(workdir, score)

    def _clear(self, arm: Arm) -> None:
        if not self._keep_checkpoints:
            self._models.keep_better(arm)

    def remove_shared(self) -> None:
        """Frees the disk of what only arms that are not the best one need."""
        if not self._keep_checkpoints and distributed.is_main():
            best_run.keep_only_best(self.arms, self.results(), self.folder)
            shutil.rmtree(self.folder / SHARED, ignore_errors=True)

    def units(self, groups: Sequence[Sequence[Arm]]) -> list[Unit]:
        """What of these groups has no line there yet, as the queue of work has it."""
        found = []
        for place, group in enumerate(self.waiting(groups)):
            inputs = self._inputs[_reads(group[0].config)]
            names = [arm.claim for arm in group]
            found.append(Unit(place, names, inputs, (inputs, group[0].name)))
        return found

    def name_arms(self, worker: str) -> None:
        """Leaves the names of all arms for who looks how far the workers are; see ``status``."""
        text = json.dumps([{**arm.identity, "claim": arm.claim} for arm in self.arms])
        path = self.folder / FOLDER / ARMS
        try:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                with atomic_write(path, f".{worker}") as draft:
                    draft.write_text(text, encoding="utf-8")
        except OSError as error:
            raise cannot_write(path, error) from error

    def finished(self) -> set[Key]:
        """Of which arms there is a result, in ``results.jsonl`` or as a worker has told."""
        known = standings(self.folder / FOLDER)
        told = {arm.key for arm in self.arms if known.get(arm.claim, Standing()).done}
        return self._done | told

    def other_weights(self, arm: Arm, digest: str) -> dict[str, Any] | None:
        """The failure of an arm whose backbone has not the weights that the others have had."""
        backbone = arm.config.backbone
        if self.weights.setdefault(backbone, digest) == digest:
            return None
        return {
            "error": f"backbone {backbone} has other weights than the runs of it that are done: "
            "bring those back, or use another --workdir"
        }


@contextlib.contextmanager
def opened(plan: Plan, *, shared: bool = False) -> Iterator[ResultsStore]:
    """Claims the folder of a study, and leaves there what its arms read.

    Args:
        plan: The study.
        shared: Whether other processes may be at work in other arms of it meanwhile.

    Raises:
        UserError: The folder holds another study, or its arms may have read other files.
    """
    with contextlib.closing(Workdir(plan.workdir)) as folder:
        folder.claim(dict(plan.record), shared=shared)
        _leave_files(plan, folder.path)
        if distributed.is_main():
            (folder.path / SHARED).mkdir(exist_ok=True)
        yield ResultsStore(plan, folder.path, alone=not shared)


def listed(plan: Plan) -> Iterator[str]:
    """A line for each group of arms, with ``DONE`` behind where all of them are; writes nothing.

    Raises:
        UserError: The folder holds another study.
    """
    folder = Workdir(plan.workdir)
    if folder.exists:
        folder.refuse_another(dict(plan.record))
    ledger = ResultsStore(plan, folder.path)
    finished = ledger.finished()
    for group in plan.groups:
        done = all(arm.key in finished for arm in group)
        yield "; ".join(map(str, group)) + (DONE if done else "")


def _leave_files(plan: Plan, folder: Path) -> None:
    """Writes the files that the arms read, unless arms may have read something else in them."""
    for name, content in plan.files.items():
        file = folder / name
        if not distributed.is_main():
            continue
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_first(file, content)
        if read_json(file, {}, "use another --workdir") != content:
            raise UserError(
                f"{file} is not what the study began with: use another --workdir, or a file of "
                "another name for another arm"
            )


def texts_of(arm: Arm) -> Texts:
    """The texts that an arm is trained on, in a study: arms with the same ones share baselines."""
    return arm.config.data.train_subset, tuple(arm.setting.items())


def texts_of_line(line: Mapping[str, Any]) -> Texts:
    """Those that a line of ``baselines.jsonl`` is of."""
    return line.get("train_subset"), tuple((line.get("setting") or {}).items())


def _reads(config: TrainConfig) -> tuple[Any, ...]:
    """What is equal for runs that read the same data and backbone."""
    dropout = config.attention_dropout, config.attention_dropout_on
    return (config.backbone, config.data, config.pooling, dropout)


def _key(line: Mapping[str, Any]) -> Key:
    return (line["arm"], line["seed"], tuple(line.get("setting", {}).items()))


def _line(arm: Arm, result: Mapping[str, Any]) -> dict[str, Any]:
    """One line of ``results.jsonl``: the run's result and its learning curve."""
    records = Workdir(arm.config.workdir).metrics.records()
    curve = [record for record in records if record["event"] == "epoch"]
    kept = {name: value for name, value in result.items() if name not in _SAID}
    return {**arm.identity, **kept, "curve": curve}
