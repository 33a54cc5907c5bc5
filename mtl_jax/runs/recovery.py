"""Which checkpoint a run goes on from: the newest that is whole, with all that it may need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain

from mtl_jax.config.earlier import lacks_settings
from mtl_jax.core import distributed
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, cannot_write
from mtl_jax.data.batches import HostBatch
from mtl_jax.runs.checkpoints.manager import CheckpointManager
from mtl_jax.runs.checkpoints.manifest import DamageError, is_earlier
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.workdir import Workdir

Batches = grain.DatasetIterator[HostBatch]

# Of a run's record, what a checkpoint's values depend on.
_DEPENDED_ON = ("weights_sha256", "tokenizer_sha256", "data")


def depended_on(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the values of a checkpoint depend on, to be kept in it.

    Args:
        record: As of ``PhaseRun.record``.
    """
    own = {name: record[name] for name in _DEPENDED_ON}
    return {**own, "versions": record["environment"]["versions"]}


def open_checkpoints(
    workdir: Workdir,
    run: Mapping[str, str],
    now: Mapping[str, Any],
    *,
    keep_latest: int,
    keep_every: int,
) -> tuple[CheckpointManager, dict[str, Any]]:
    """Opens the checkpoints of a run, after ``recover``.

    Args:
        workdir: The run's folder.
        run: What it is; see ``run_config.identity``.
        now: As of ``depended_on``.
        keep_latest: As of ``TrainConfig``.
        keep_every: As of ``TrainConfig``.

    Returns:
        The checkpoints, and the progress that the newest one has kept, if there is one.

    Raises:
        UserError: They are of other weights or data.
    """
    checkpoints = CheckpointManager(workdir.checkpoints, keep_latest, keep_every, run)
    if (last := checkpoints.last_step) is None:
        return checkpoints, {}
    saved = checkpoints.progress(last)
    kept = saved["depended_on"]
    try:
        distributed.call_on_all(functools.partial(_refuse_others, workdir.path, kept, now))
    except UserError:
        checkpoints.close()
        raise
    before, versions = kept["versions"], now["versions"]
    changed = [
        f"{package} {before.get(package)} (now {version})"
        for package, version in versions.items()
        if before.get(package) != version
    ]
    if changed:
        say(
            f"note: checkpoint {last} was saved with {', '.join(changed)}: from here on numbers "
            "may differ by rounding"
        )
    return checkpoints, saved


def _refuse_others(path: Path, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in _DEPENDED_ON:
        if kept[name] != now[name]:
            raise UserError(
                f"the checkpoints in {path} belong to a run with another {name} "
                f"({kept[name]!r}, here {now[name]!r}): use another --workdir"
            )


def batches_from(
    checkpoints: CheckpointManager, step: int, after: Callable[[int], Batches], done: int
) -> tuple[Batches, int]:
    """The batches that are left of a phase.

    Args:
        checkpoints: The run's.
        step: The one that is gone on from.
        after: Gives the batches of the phase without so many of the first.
        done: How many those are that have been trained on.

    Returns:
        The iterator, and how many batches there were before the first that it could give.
    """
    before = checkpoints.progress(step)["drawn"]
    data = after(before)
    if checkpoints.restore_data(step, data):
        return data, before
    # Another number of processes has saved iterators of its own; the steps tell as much.
    return after(done), done


def done_before(workdir: Workdir, run: Mapping[str, str]) -> bool:
    """Whether an earlier version has finished the run, and left checkpoints that are whole.

    What it has begun is not gone on from: since then steps may be rounded otherwise, and the end
    would be neither version's.

    Args:
        workdir: The run's folder.
        run: What the run is; see ``run_config.identity``.

    Raises:
        UserError: It has not finished it.
        DamageError: Its last or its best checkpoint is damaged.
    """
    saved = CheckpointReader(workdir.checkpoints, run)
    last = saved.last_step
    other_files = any(is_earlier(saved.folder / str(step)) for step in saved.steps)
    if last is None or not (other_files or lacks_settings(workdir.config().get("phases"))):
        return False
    result = workdir.result()
    if result is None or last != result["step"]:
        raise UserError(
            f"{workdir.path} was begun by an earlier version of mtl_jax, and not finished: run "
            "train with that version to finish it, or start again in another --workdir with "
            f"--config {workdir.path / 'config.json'}; nothing is changed there"
        )
    if not other_files:
        return False
    for step in (last, *saved.manifest(last).needs):
        saved.check(step)
    return True


def recover(workdir: Workdir, run: Mapping[str, str]) -> None:
    """Sets aside whatever is damaged of what the run needs, and what can't be gone on from.

    What another run has saved is damaged, too. A finished run whose last checkpoint is lost is
    an unfinished one, unless ``Workdir.remove_checkpoints`` has removed it.

    A run is a function of its settings: from any whole checkpoint, or from the beginning, it
    comes to the same end. Nothing is removed; what is set aside is in ``damaged``. Where
    anything was, the log is what it was at the checkpoint that is the newest then.

    Args:
        workdir: The run's folder.
        run: What the run is; see ``run_config.identity``.

    Raises:
        UserError: A checkpoint is of another version of this package, or can't be read.
    """
    if damage := workdir.metrics.mend():
        say(f"warning: {damage}: what was lost is logged again")
    saved = CheckpointReader(workdir.checkpoints, run)
    reasons = _Reasons(saved, workdir.metrics.lines)
    aside: dict[int, str] = {}
    found = None
    for step in reversed(saved.steps):
        if (reason := reasons.against(step)) is None:
            found = step
            break
        aside[step] = reason
    there = saved.steps
    for step, reason in reasons.damaged.items():
        if step in there:
            aside.setdefault(step, f"it is damaged ({reason})")
    lost = _lost(workdir, found)
    if not aside and lost is None:
        return
    # First: a result in it is that of checkpoints which will no longer be there.
    workdir.metrics.rewind(0 if found is None else saved.progress(found)["lines"])
    for step in sorted(aside, reverse=True):
        place = _set_aside(saved.folder / str(step), workdir.path / "damaged")
        say(f"warning: checkpoint {step}: {aside[step]}; moved to {place}")
    if lost is not None and lost not in aside:
        say(f"warning: the run was finished, and its last checkpoint, {lost}, is lost")
    say(f"warning: resuming from {'the beginning' if found is None else f'checkpoint {found}'}")


def _lost(workdir: Workdir, newest: int | None) -> int | None:
    """The last checkpoint of a finished run where it is lost, whatever the newest whole one is."""
    result = workdir.result()
    if result is None or workdir.checkpoints_removed or result["step"] == newest:
        return None
    return result["step"]


class _Reasons:
    """Why the checkpoints of a run can't be gone on from; each is read once.

    Attributes:
        damaged: Of those read, the damaged ones, and in what way.
    """

    def __init__(self, saved: CheckpointReader, lines: int):
        self._saved, self._lines = saved, lines
        self._whole: set[int] = set()
        self.damaged: dict[int, str] = {}

    def against(self, step: int) -> str | None:
        """Why not this one; None where it can be."""
        if reason := self._damage(step):
            return f"it is damaged ({reason})"
        known = self._saved.manifest(step)
        if known.progress["lines"] > self._lines:
            return "metrics.jsonl has lost lines of before it"
        for other in known.needs:
            if reason := self._damage(other):
                return f"it needs checkpoint {other}, which is damaged ({reason})"
        return None

    def _damage(self, step: int) -> str | None:
        if step not in self._whole | self.damaged.keys():
            try:
                self._saved.check(step)
                self._whole.add(step)
            except DamageError as error:
                self.damaged[step] = error.reason
        return self.damaged.get(step)


def _set_aside(folder: Path, place: Path) -> Path:
    """Moves a checkpoint, to a name that none has yet."""
    names = (folder.name if i == 1 else f"{folder.name}-{i}" for i in range(1, 10**6))
    try:
        place.mkdir(exist_ok=True)
        aside = next(path for name in names if not (path := place / name).exists())
        folder.rename(aside)
    except OSError as error:
        raise cannot_write(place, error) from error
    return aside
