"""Checkpoints through Orbax, saved while training goes on: the last, the best, those needed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mtl_jax.core import distributed
from mtl_jax.core.console import in_bytes
from mtl_jax.core.errors import SharedError, UnsavedError, UserError, first_line, reason
from mtl_jax.freezing.partition import Params
from mtl_jax.runs.checkpoints import arrays, manifest
from mtl_jax.runs.checkpoints.handler import StateHandler, StateSave
from mtl_jax.runs.checkpoints.manifest import Manifest
from mtl_jax.runs.checkpoints.reader import BEST, CheckpointReader, optimizer_tree
from mtl_jax.runs.progress import beats
from mtl_jax.training.program import TrainState

# What is written beside the arrays.
_SMALL_FILES = 2**18
# Files and folders of a checkpoint, and of its companions, at most.
_FILES = 32
# What to do where the system refuses something else than room.
_REMEDIES = {
    errno.EACCES: "give write access to it",
    errno.EDQUOT: "make room in the quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EIO: "check the disk",
    errno.ENOENT: "put back that folder, or go to where it is now,",
    errno.EROFS: "make that disk writable",
}
# Where those go that are to be removed: in one move, so that a kill leaves none in part.
_PRUNED = ".pruned"


def kept(needs: Mapping[int, Collection[int]], latest: int, every: int) -> set[int]:
    """Which checkpoints stay, so that from each of the last and the regular ones a run can go on.

    Args:
        needs: Per step, those that going on from there may need beside it.
        latest: How many of the last ones stay.
        every: The steps that are multiples of it stay, too; 0: none.
    """
    steps = sorted(needs)
    stay = {*steps[-latest:], *(step for step in steps if every and step % every == 0)}
    return stay.union(*(needs[step] for step in stay))


class _KeepSteps(preservation_policy.PreservationPolicy):
    """Keeps the checkpoints of these steps."""

    def __init__(self) -> None:
        self.steps: Collection[int] = ()

    def should_preserve(
        self,
        checkpoints: Sequence[Any],
        *,
        context: preservation_policy.PreservationContext,
    ) -> Sequence[bool]:
        """As of Orbax."""
        del context
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


class _Manager(ocp.CheckpointManager):
    """Asks nobody whether the process is to end: see ``preemption``, which counts its questions."""

    def reached_preemption(self, step: int) -> bool:
        """As of Orbax."""
        del step
        return False


def _host_copy(tree: Any) -> Any:
    """Numpy copies: they fit any number of devices, and outlive a donated buffer."""
    return jax.tree.map(np.array, tree)


@dataclasses.dataclass(frozen=True)
class _Held:
    """Parameters that are the best, of which there is no checkpoint yet.

    Attributes:
        step: At which they were.
        params: Numpy copies.
        of: As of ``Manifest.best_of``.
    """

    step: int
    params: Any
    of: Mapping[str, Any]


class CheckpointManager(CheckpointReader):
    """The folder ``checkpoints`` of a run that this process trains.

    A checkpoint is written beside the old ones under a temporary name and renamed when it
    is whole, so that a save that fails or is killed leaves the good ones usable. See
    ``CheckpointReader`` for its parts.
    """

    def __init__(
        self,
        folder: Path,
        latest: int = 2,
        every: int = 0,
        run: Mapping[str, str] | None = None,
    ):
        """Opens the folder, or makes it.

        Args:
            folder: The folder; what a kill has left unfinished in it is removed.
            latest: See ``kept``.
            every: See ``kept``.
            run: See ``CheckpointReader``; it is kept in each checkpoint.

        Raises:
            DamageError: The newest checkpoint is damaged; see ``recovery``.
            SharedError: The processes of the run do not see the same checkpoints.
        """
        # Orbax writes to the path as it is now, and would make a folder that is moved anew there.
        folder = folder.absolute()
        super().__init__(folder, run)
        self._latest, self._every, self._kept = latest, every, _KeepSteps()
        self._held: _Held | None = None
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add(manifest.ITEM, StateSave, StateHandler())
        self._manager = _Manager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                todelete_subdir=_PRUNED,
                cleanup_tmp_directories=True,
                create=True,
            ),
            handler_registry=handlers,
        )
        there = distributed.broadcast(self.steps)
        distributed.call_on_all(functools.partial(self._come_to_see, there))
        self._look()
        self._remove_pruned()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        del kind, trace
        # What is being saved is waited for with all the others, who may wait for this one's end.
        if error is None or distributed.is_collective(error):
            self.close()

    def _come_to_see(self, there: list[int]) -> None:
        """Lists the folder until it has what the first process sees, as network disks cache it."""

        def seen() -> bool:
            if self.steps != there:
                self._manager.reload()
            return self.steps == there

        if not distributed.awaited(seen):
            raise UserError(
                f"process {distributed.index()} sees other checkpoints in {self.folder} than the "
                f"first one ({self.steps}, there {there}): run again when that file system shows "
                "all the same, or use a --workdir on one that does"
            )

    def _look(self) -> None:
        last = self.last_step
        self._best = None if last is None else self.manifest(last).best
        self._needs = {step: self._needed_by(step) for step in self.steps}

    def _needed_by(self, step: int) -> tuple[int, ...]:
        try:
            return self.manifest(step).needs
        except manifest.DamageError:
            # None that the run goes on from; it is found out where another has to be.
            return ()

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, with the one that is being saved."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step of the best scored checkpoint, see ``progress.beats``; or None."""
        return self._best and self._best[0]

    def hold(
        self,
        step: int,
        params: Params,
        score: float | None,
        replaced: Container[int] = (),
        frozen: str | None = None,
        phase: int = 0,
    ) -> None:
        """Holds parameters in memory, if they are the best so far, for the next ``save``.

        A kill before that loses them with the steps that led there, which come again.

        Args:
            step: At which they are.
            params: As of ``save``.
            score: As of ``save``.
            replaced: As of ``save``.
            frozen: As of ``save``.
            phase: The phase that they are of, from 0.

        Raises:
            UserError: One is not finite.
        """
        if self._is_best(score, replaced):
            copy = _host_copy(params)
            self._refuse_not_finite(copy, step)
            self._best = step, score
            self._held = _Held(step, copy, {"frozen": frozen, "phase": phase})

    def best_score(self, score: float | None, replaced: Container[int] = ()) -> float | None:
        """The best score, with one that is as of ``save``."""
        return score if self._is_best(score, replaced) else self._best and self._best[1]

    def _is_best(self, score: float | None, replaced: Container[int]) -> TypeGuard[float]:
        best = self._best
        to_beat = -math.inf if best is None or best[0] in replaced else best[1]
        return score is not None and bool(beats(score, to_beat))

    def _refuse_not_finite(self, params: Any, step: int) -> None:
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            raise SharedError(
                f"the parameters are not finite after step {step}: lower the learning "
                "rates; the last checkpoint is kept"
            )

    def _best_held(self) -> _Held | None:
        """The best one, where it has no checkpoint of its own; from the last one, if need be."""
        if self._best is None or self._best[0] in self.steps:
            return None
        if (held := self._held) is None or held.step != self._best[0]:
            last = self.last_step
            known = None if last is None else self.manifest(last)
            if last is None or known is None or known.best_of is None:
                return None
            params = arrays.nested(self._arrays(last, BEST))
            held = self._held = _Held(self._best[0], params, known.best_of)
        return held

    def best(self) -> tuple[Params, int] | None:
        """All parameters of the best one and their phase, where they are in memory."""
        held = self._held
        if self._best is None or held is None or held.step != self._best[0]:
            return None
        return self._whole(arrays.named(held.params), held.of["frozen"]), held.of["phase"]

    def save(
        self,
        params: Params,
        state: TrainState,
        data: grain.DatasetIterator[Any],
        progress: dict[str, Any],
        score: float | None,
        replaced: Container[int] = (),
        keep: Collection[int] = (),
        reference: Mapping[str, Any] | None = None,
        frozen: str | None = None,
        phase: int = 0,
        only_best: bool = False,
    ) -> None:
        """Saves in the background what ``restore`` needs, or only what ``restore_best`` does.

        Args:
            params: The model's parameters, but for what ``frozen`` has.
            state: One copy of the training state.
            data: The iterator whose next batch is the one after ``state.step``.
            progress: Any JSON object.
            score: What the best checkpoint is chosen by, higher is better; None for one
                that is only there to resume from.
            replaced: Steps of scored checkpoints that this one is better than, whatever their
                score.
            keep: Steps whose checkpoints going on from this one may need, beside the best.
            reference: Arrays for ``restore_reference``, where there are any.
            frozen: Digest of the pre-trained encoder, where a file of it beside the checkpoints
                has the parameters that are not among ``params``; see ``frozen_leaves``.
            phase: As of ``hold``.
            only_best: Whether of all arrays only the best parameters are saved, for nothing goes
                on from here.

        Raises:
            UserError: This save, or the one before it, could not be written, or a
                parameter is not finite; the checkpoints that were there stay.
        """
        self.wait()
        step = int(state.step)
        parts = {"params": _host_copy(params)}
        self._refuse_not_finite(parts["params"], step)
        best, held = self._best, None
        if self._is_best(score, replaced):
            best = step, score
            # So that it need not be read again, nor waited for.
            self._held = _Held(step, parts["params"], {"frozen": frozen, "phase": phase})
        elif best is not None and best[0] != step and (held := self._best_held()) is not None:
            parts[BEST] = held.params
        if not only_best:
            parts["optimizer"] = _host_copy(optimizer_tree(state))
            if reference:
                parts["reference"] = reference
        elif best is not None and best[0] != step:
            del parts["params"]
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
        distributed.call_on_main(functools.partial(self._check_disk, size))
        beside = () if held is not None else (best or ())[:1]
        needs = tuple(sorted({*keep, *beside} - {step}))
        known = Manifest(
            step,
            self.run or {},
            progress,
            best,
            needs,
            data.get_state(),
            jax.process_count(),
            frozen,
            best_of=None if held is None else held.of,
        )
        items: dict[str, Any] = {manifest.ITEM: StateSave(known, parts)}
        self._kept.steps = kept({**self._needs, step: needs}, self._latest, self._every)
        with self._written():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._best = best
        self._needs = {old: self._needs.get(old, needs) for old in self._manager.all_steps()}

    def wait(self) -> None:
        """Returns when everything is on the disk; raises ``UserError`` if it can't be."""
        with self._written():
            self._manager.wait_until_finished()
        self._remove_pruned()

    def _remove_pruned(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self.folder / _PRUNED, ignore_errors=True)

    def _check_disk(self, size: int) -> None:
        # Beforehand, for Orbax fails in many threads at once, each with a traceback, and waits
        # five minutes for a folder that can't be made.
        try:
            tempfile.TemporaryFile(dir=self.folder).close()
            needed, free = size + _SMALL_FILES, shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._unsaved(reason(error), error.errno) from error
        if free < needed:
            raise self._unsaved(f"{in_bytes(free)} of {in_bytes(needed)} are free")
        disk = os.statvfs(self.folder)
        # Some file systems have no such count.
        if disk.f_files and disk.f_favail < _FILES:
            raise self._unsaved(f"the disk has room for {disk.f_favail} files, {_FILES} are needed")

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if distributed.loss_in_words(error):
                raise
            # A save that failed leaves the manager without knowledge of those before it.
            self._manager.reload()
            self._look()
            raise self._unsaved(first_line(error), getattr(error, "errno", None)) from error

    def _unsaved(self, reason: str, number: int | None = None) -> UnsavedError:
        remedy = _REMEDIES.get(number or 0, "free some disk space")
        return UnsavedError(
            f"the checkpoint could not be saved in {self.folder} ({reason}): {remedy} and run "
            f"again to resume from step {self.last_step or 0}"
        )

    def close(self) -> None:
        """Waits for the background work and releases the folder; raises as ``wait`` does."""
        with self._written():
            self._manager.close()
        self._remove_pruned()
