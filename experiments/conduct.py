"""Trains the arms of a study group by group, and goes on with a study that was cut short.

An arm that fails takes no other with it; it is counted, and tried again at the next call. The
report on what is done so far is written again and again, and once more when the study is
interrupted; a call on a folder in which all is done writes it anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.machine import circumstances
from experiments.study import Arm, Key, Plan, StudySettings
from mtl_jax.cli import one_line
from mtl_jax.config import Settings, TrainConfig
from mtl_jax.errors import Preempted, UserError

if TYPE_CHECKING:
    from mtl_jax.inputs import Inputs

# What the identity of an arm says in a run's place.
_SAID = ("event", "scenario", "recipe", "seed")
_WEIGHTS = "weights_sha256"
# What an ``Inputs`` is made from.
_OF_INPUTS = (
    "backbone",
    "data",
    "pooling",
    "attention_dropout",
    "cache_memory",
    "cache_disk",
    "cache_folder",
)


class Pool:
    """The data and the backbones that arms share: those of equal settings are read once."""

    def __init__(self) -> None:
        self._open: dict[tuple[Any, ...], Inputs] = {}
        self._refused: dict[tuple[Any, ...], str] = {}
        self._notes: dict[str, None] = {}

    def get(self, settings: Settings) -> Inputs:
        """The inputs of these settings.

        Raises:
            UserError: They can't be read; what was refused once is not tried again.
        """
        from mtl_jax.inputs import Inputs

        key = _inputs_key(settings)
        if key in self._refused:
            raise UserError(self._refused[key])
        if key not in self._open:
            try:
                self._open[key] = Inputs(settings)
            except UserError as error:
                self._refused[key] = one_line(error)
                raise
        return self._open[key]

    def keep_only(self, needed: Sequence[Settings]) -> None:
        """Drops what none of these need: a study may have more backbones than fit in memory."""
        keys = {_inputs_key(settings) for settings in needed}
        for key in self._open.keys() - keys:
            self._notes |= dict.fromkeys(self._open.pop(key).notes())

    def notes(self) -> list[str]:
        """What a user should see of all the data that has been read, each once."""
        still_open = (note for inputs in self._open.values() for note in inputs.notes())
        return list(self._notes | dict.fromkeys(still_open))


def _inputs_key(settings: Settings) -> tuple[Any, ...]:
    return tuple(getattr(settings, name) for name in _OF_INPUTS)


def carry_out(study: StudySettings, plan_of: Callable[[Any, Pool], Plan], command: str) -> int:
    """Trains what a study asks for and is not done yet, and writes its report.

    Args:
        study: The settings.
        plan_of: What these make of it.
        command: How it was called, for the report.

    Returns:
        How many arms failed, or were skipped.

    Raises:
        UserError: The settings are wrong, the folder holds a study with others, or no arm could
            be trained.
    """
    started, pool = time.time(), Pool()
    return conduct(plan_of(study.absolute(), pool), pool, command, started)


def conduct(plan: Plan, pool: Pool, command: str, started: float) -> int:
    """Trains the arms that are not done yet, and writes the report, also while it trains.

    Args:
        plan: The study.
        pool: What has been read for it so far.
        command: How it was called, for the report.
        started: When, in seconds since the epoch.

    Returns:
        How many arms failed.

    Raises:
        UserError: The folder holds another study, or no arm could be trained.
    """
    from mtl_jax.console import say
    from mtl_jax.workdir import Workdir, read_lines

    arms = [arm for group in plan.groups for arm in group]
    asked = {arm.key for arm in arms}
    folder = Workdir(plan.workdir)
    results_file = folder.path / "results.jsonl"
    failures: list[dict[str, Any]] = []

    def results() -> list[dict[str, Any]]:
        return [line for line in read_lines(results_file) if _key(line) in asked]

    def report() -> Path:
        context = {
            **circumstances(command, started),
            "data": pool.notes(),
            "seeds": list(dict.fromkeys(arm.config.seed for arm in arms)),
            "settings": dict(plan.settings),
            "asked": dict(Counter(arm.name for arm in arms)),
        }
        return plan.report(folder.path, results(), failures, context)

    def so_far() -> None:
        if not results():
            return
        try:
            # Its table is for the end: here it would stand between the lines on the arms.
            with contextlib.redirect_stdout(io.StringIO()):
                report()
        except Exception as error:  # noqa: BLE001  (the arms to come must not be lost with it)
            say(f"there is no report so far: {one_line(error)}")

    with contextlib.closing(folder):
        folder.claim(dict(plan.record))
        _leave_files(plan, folder.path)
        for note in plan.notes:
            say(note)
        try:
            _train_arms(plan, pool, results_file, failures, so_far)
        except (KeyboardInterrupt, Preempted):
            so_far()
            raise
        if not (count := len(results())):
            raise UserError(
                f"no arm of the study in {plan.workdir} could be trained; the first failed with: "
                f"{failures[0]['error']}"
            )
        path = report()
    say(f"{count} arms in {time.time() - started:.0f} s; the report is {path}")
    return len(failures)


def _leave_files(plan: Plan, folder: Path) -> None:
    """Writes the files that the arms read, unless arms may have read something else in them."""
    from mtl_jax.workdir import write_json

    for name, content in plan.files.items():
        file = folder / name
        if file.exists() and json.loads(file.read_text(encoding="utf-8")) != content:
            raise UserError(
                f"{file} is not what the study began with: use another --workdir, or a file of "
                "another name for another arm"
            )
        file.parent.mkdir(exist_ok=True)
        write_json(file, content)


def _key(line: Mapping[str, Any]) -> Key:
    return (line["arm"], line["seed"], tuple(line.get("setting", {}).items()))


def _train_arms(
    plan: Plan,
    pool: Pool,
    results_file: Path,
    failures: list[dict[str, Any]],
    so_far: Callable[[], None],
) -> None:
    """Trains what has no result yet; the failures are appended to those there are."""
    from mtl_jax.console import say
    from mtl_jax.workdir import Workdir, append_line, read_lines, rewrite_lines

    finished = read_lines(results_file)
    # Without a line that a kill left unfinished, which the next one would else be glued to.
    rewrite_lines(results_file, finished)
    done = {_key(line): line.get(_WEIGHTS) for line in finished}
    arms = [arm for group in plan.groups for arm in group]
    numbers = {arm.key: number for number, arm in enumerate(arms, start=1)}
    waiting = [[arm for arm in group if arm.key not in done] for group in plan.groups]
    waiting = [group for group in waiting if group]
    weights: dict[str, str] = {
        arm.config.backbone: digest for arm in arms if (digest := done.get(arm.key))
    }
    reported = time.monotonic()
    for place, todo in enumerate(waiting):
        pool.keep_only([group[0].config for group in waiting[place:]])
        for arm in todo:
            say(f"arm {numbers[arm.key]} of {len(arms)}: {arm}")
        for arm, outcome in zip(todo, _train_group(todo, pool, weights), strict=True):
            if "error" in outcome:
                failures.append({**arm.identity, **outcome})
                say(f"arm {numbers[arm.key]} failed: {outcome['error']}")
                continue
            append_line(results_file, _line(arm, outcome))
            if not plan.keep_checkpoints:
                Workdir(arm.config.workdir).remove_checkpoints()
        if place + 1 < len(waiting) and time.monotonic() - reported >= plan.report_every:
            so_far()
            reported = time.monotonic()


def _train_group(arms: Sequence[Arm], pool: Pool, weights: dict[str, str]) -> list[dict[str, Any]]:
    """Per arm its result, or a failure, which is ``skipped`` where nothing could be read.

    Args:
        arms: What is trained at once, on the same inputs.
        pool: Where those are.
        weights: The digests of the backbones that there are results of; may grow.
    """
    backbone = arms[0].config.backbone
    try:
        inputs = pool.get(arms[0].config)
    except UserError as error:
        return [{"error": one_line(error), "skipped": True} for _ in arms]
    except Exception as error:  # noqa: BLE001  (one backbone must not take the others with it)
        return [{"error": one_line(error)} for _ in arms]
    if weights.setdefault(backbone, inputs.weights_digest) != inputs.weights_digest:
        error = (
            f"backbone {backbone} has other weights than the runs of it that are done: bring "
            "those back, or use another --workdir"
        )
        return [{"error": error} for _ in arms]
    outcomes = train_group([arm.config for arm in arms], inputs)
    return [
        {"error": each} if isinstance(each, str) else {**each, _WEIGHTS: inputs.weights_digest}
        for each in outcomes
    ]


def train_group(configs: Sequence[TrainConfig], inputs: Inputs) -> Sequence[dict[str, Any] | str]:
    """Per run its result, or in words what it failed with: an exception holds the arrays."""
    from mtl_jax.train import train_seeds

    try:
        outcomes = train_seeds(configs, inputs)
    except Exception as error:  # noqa: BLE001  (one scenario must not take the others with it)
        return [one_line(error)] * len(configs)
    return [one_line(each) if isinstance(each, UserError) else each for each in outcomes]


def _line(arm: Arm, result: Mapping[str, Any]) -> dict[str, Any]:
    """One line of ``results.jsonl``: the run's result and its learning curve."""
    from mtl_jax.workdir import Workdir

    records = Workdir(arm.config.workdir).records()
    curve = [record for record in records if record["event"] == "epoch"]
    kept = {name: value for name, value in result.items() if name not in _SAID}
    return {**arm.identity, **kept, "curve": curve}
