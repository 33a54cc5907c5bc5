"""What a study's folder tells of its arms: ``results.jsonl``, the arms' own folders, failures."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.core import distributed
from mtl_jax.core.command_line import one_line
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, cannot_write
from mtl_jax.core.file_lock import exclusive
from mtl_jax.core.json_files import append_line, read_json, read_lines, rewrite_lines, write_json
from mtl_jax.runs.workdir import SHARED, Workdir
from mtl_jax.studies.settings import DONE, Arm, Key, Plan
from mtl_jax.studies.stats.results import RESULT
from mtl_jax.studies.tuning.record import TuningRecord, applied

# What the identity of an arm says in a run's place.
_SAID = ("event", "scenario", "recipe", "seed")
WEIGHTS = "weights_sha256"
BASELINES = "baselines.jsonl"
_FAILURE = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}


class ResultsStore:
    """The arms of a study that are done, and those that failed since it was opened.

    Attributes:
        folder: Of the study.
        arms: All of them, in the order in which they are trained.
        tasks: All of those that an arm has.
        failures: The identity of each that failed, with ``error``, and ``skipped`` where
            nothing of it could be read.
        weights: Per backbone the digest of the weights that there are results of.
        devices: On what the arms whose results ``left`` has found were trained, each kind once.
    """

    def __init__(self, plan: Plan, folder: Path):
        self.folder = folder
        self.arms: list[Arm] = [arm for group in plan.groups for arm in group]
        self.failures: list[dict[str, Any]] = []
        self.weights: dict[str, str] = {}
        self.devices: dict[str, None] = {}
        # An arm may do without some of the tasks.
        self.tasks = max((arm.config.data.tasks for arm in self.arms), key=len, default=())
        self._results = folder / "results.jsonl"
        self._asked = {arm.key for arm in self.arms}
        self._numbers = {arm.key: number for number, arm in enumerate(self.arms, start=1)}
        self._keep_checkpoints = plan.keep_checkpoints
        lines = distributed.call_on_main(self._lines)
        done = {_key(line): line.get(WEIGHTS) for line in lines}
        for arm in self.arms:
            if digest := done.get(arm.key):
                self.weights[arm.config.backbone] = digest
        self._done = set(done)

    def _lines(self) -> list[dict[str, Any]]:
        return read_lines(self._results, RESULT)

    def mend(self) -> None:
        """Drops a line that a kill left unfinished, which the next would else be glued to."""
        rewrite_lines(self._results, self._lines())

    def results(self) -> list[dict[str, Any]]:
        """The lines of ``results.jsonl`` that are of arms of this study."""
        return [line for line in self._lines() if _key(line) in self._asked]

    def waiting(self, groups: Sequence[Sequence[Arm]]) -> list[list[Arm]]:
        """What of these groups has no line there yet."""
        todo = [[arm for arm in group if arm.key not in self._done] for group in groups]
        return [group for group in todo if group]

    def place(self, arm: Arm) -> str:
        """``arm 3 of 7``."""
        return f"arm {self._numbers[arm.key]} of {len(self.arms)}"

    def add(self, arm: Arm, outcome: Mapping[str, Any]) -> None:
        """Keeps an arm's result as a line of ``results.jsonl``, or notes that it failed."""
        if self._failed(arm, outcome) or not distributed.is_main():
            return
        line = _line(arm, outcome)
        # First: an arm with a line is not opened again, and what a kill had left would stay. Not
        # at the next call either: it may have other wishes than the one that trained the arm.
        self._clear(arm)
        append_line(self._results, line)

    def leave(self, arm: Arm, outcome: Mapping[str, Any]) -> None:
        """Leaves an arm's result in its own folder, and why it failed in ``failures/``."""
        file = self._failure_file(arm)
        failed = self._failed(arm, outcome)
        if not distributed.is_main():
            return
        if failed:
            try:
                file.parent.mkdir(exist_ok=True)
            except OSError as error:
                raise cannot_write(file.parent, error) from error
            write_json(file, dict(outcome))
            return
        with contextlib.suppress(OSError):
            file.unlink()
        self._clear(arm)

    def _failed(self, arm: Arm, outcome: Mapping[str, Any]) -> bool:
        if failed := "error" in outcome:
            self.failures.append({**arm.identity, **outcome})
            say(f"arm {self._numbers[arm.key]} failed: {outcome['error']}")
        return failed

    def _clear(self, arm: Arm) -> None:
        if not self._keep_checkpoints:
            Workdir(arm.config.workdir).remove_checkpoints()

    def remove_shared(self) -> None:
        """Frees the disk of the encoder that arms have shared, where they have no checkpoints."""
        if not self._keep_checkpoints and distributed.is_main():
            shutil.rmtree(self.folder / SHARED, ignore_errors=True)

    def _failure_file(self, arm: Arm) -> Path:
        return self.folder / "failures" / f"{Path(arm.config.workdir).name}.json"

    def left(self, arm: Arm) -> dict[str, Any]:
        """The outcome that ``leave``, or the arm's training itself, has left of an arm."""
        try:
            return self._left(arm)
        except Exception as error:  # noqa: BLE001  (one arm must not take the others with it)
            return {"error": one_line(error)}

    def done(self, arm: Arm) -> bool:
        """Whether there is a result of an arm, in ``results.jsonl`` or in its own folder."""
        return arm.key in self._done or "error" not in self.left(arm)

    def _left(self, arm: Arm) -> dict[str, Any]:
        arm = applied(arm, TuningRecord(self.folder, arm).chosen())
        workdir = Workdir(arm.config.workdir)
        if not workdir.exists or (result := workdir.result()) is None:
            if (file := self._failure_file(arm)).exists():
                return read_json(file, _FAILURE, "remove it and run the study again")
            begun = "is not finished" if workdir.exists else "was not begun"
            return {"error": f"it {begun}: run its part of the study again"}
        record = workdir.config()
        own = dataclasses.asdict(arm.config.absolute())
        settings = {name: own.get(name, value) for name, value in record["settings"].items()}
        if changed := workdir.differences({**record, "settings": settings}):
            error = f"{workdir.path} was made with another configuration ({'; '.join(changed)})"
            return {"error": error}
        kinds = Counter(record["environment"]["devices"])
        self.devices |= dict.fromkeys(f"{count} x {kind}" for kind, count in kinds.items())
        digest = record[WEIGHTS]
        tuned = {} if arm.tuned is None else {"tuned": dict(arm.tuned)}
        return self.other_weights(arm, digest) or {**result, **tuned, WEIGHTS: digest}

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
        yield ResultsStore(plan, folder.path)


def listed(plan: Plan) -> Iterator[str]:
    """A line for each group of arms, with ``DONE`` behind where all of them are; writes nothing.

    Raises:
        UserError: The folder holds another study.
    """
    folder = Workdir(plan.workdir)
    if folder.exists:
        folder.refuse_another(dict(plan.record))
    ledger = ResultsStore(plan, folder.path)
    for group in plan.groups:
        done = folder.exists and all(map(ledger.done, group))
        yield "; ".join(map(str, group)) + (DONE if done else "")


def _leave_files(plan: Plan, folder: Path) -> None:
    """Writes the files that the arms read, unless arms may have read something else in them."""
    for name, content in plan.files.items():
        file = folder / name
        if not distributed.is_main():
            continue
        with exclusive(file, cannot_write):
            if not file.exists():
                write_json(file, content)
            elif read_json(file, {}, "use another --workdir") != content:
                raise UserError(
                    f"{file} is not what the study began with: use another --workdir, or a file "
                    "of another name for another arm"
                )


def _key(line: Mapping[str, Any]) -> Key:
    return (line["arm"], line["seed"], tuple(line.get("setting", {}).items()))


def _line(arm: Arm, result: Mapping[str, Any]) -> dict[str, Any]:
    """One line of ``results.jsonl``: the run's result and its learning curve."""
    records = Workdir(arm.config.workdir).records()
    curve = [record for record in records if record["event"] == "epoch"]
    kept = {name: value for name, value in result.items() if name not in _SAID}
    return {**arm.identity, **kept, "curve": curve}
