"""Checkpoints through Orbax: the best one by validation, the last one, and those asked for."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mtl_jax.errors import UserError
from mtl_jax.freeze import Freeze, Params
from mtl_jax.step import TrainState

# Orbax writes the arrays twice, then removes the first copy; the rest is for its small files.
_COPIES, _SMALL_FILES = 2, 2**18


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


class _Kept(preservation_policy.PreservationPolicy):
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


def _optimizer(state: TrainState) -> dict[str, Any]:
    tree = {"opt_state": state.opt_state, "step": state.step, "rng": state.rng}
    # Where the weights are fixed there is nothing of it, in checkpoints of before it was, too.
    return {**tree, "weighting": state.weighting} if jax.tree.leaves(state.weighting) else tree


def _host_copy(tree: Any) -> Any:
    """Numpy copies: they fit any number of devices, and outlive a donated buffer."""
    return jax.tree.map(np.array, tree)


class Checkpoints:
    """The folder ``checkpoints`` of a run.

    A checkpoint is written beside the old ones under a temporary name and renamed when it
    is whole, so that a save that fails or is killed leaves the good ones usable. Its parts:
    ``params`` (the whole model), ``optimizer`` (state, step, key), ``data`` (the data
    iterator), ``progress`` (JSON) and, where there are any, ``reference`` arrays.
    """

    def __init__(self, folder: Path):
        self._kept = _Kept()
        policy = preservation_policy.AnyPreservationPolicy(
            [
                self._kept,
                preservation_policy.LatestN(1),
                preservation_policy.BestN(
                    get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy, best_fn=_score, create=True
            ),
        )

    @property
    def last_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, in their order."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step of the best scored checkpoint, or None."""
        return self._manager.best_step()

    def save(
        self,
        params: Params,
        state: TrainState,
        data: grain.DatasetIterator[Any],
        progress: dict[str, Any],
        score: float | None,
        keep: Collection[int] = (),
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves in the background what ``restore`` needs.

        Args:
            params: The whole model's parameters.
            state: One copy of the training state.
            data: The iterator whose next batch is the one after ``state.step``.
            progress: Any JSON object.
            score: What the best checkpoint is chosen by, higher is better; None for one
                that is only there to resume from.
            keep: Steps whose checkpoints are needed yet, beside this one and the best.
            reference: Arrays for ``restore_reference``, where there are any.

        Raises:
            UserError: This save, or the one before it, could not be written, or a
                parameter is not finite; the checkpoints that were there stay.
        """
        self.wait()
        arrays = _host_copy(params), _host_copy(_optimizer(state))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays[0])):
            raise UserError(
                f"the parameters are not finite after step {int(state.step)}: lower the learning "
                "rates; the last checkpoint is kept"
            )
        written = jax.tree.leaves((arrays, reference or {}))
        self._check_space(sum(leaf.nbytes for leaf in written))
        items: dict[str, Any] = {
            "params": ocp.args.StandardSave(arrays[0]),
            "optimizer": ocp.args.StandardSave(arrays[1]),
            "data": grain.checkpoint.CheckpointSave(data),
            "progress": ocp.args.JsonSave(progress),
        }
        if reference:
            items["reference"] = ocp.args.StandardSave(reference)
        args = ocp.args.Composite(**items)
        self._kept.steps = tuple(keep)
        metrics = None if score is None else {"score": score}
        step = int(state.step)
        try:
            self._manager.save(step, args=args, metrics=metrics, force=True)
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error

    def wait(self) -> None:
        """Returns when everything is on the disk; raises ``UserError`` if it can't be."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error

    def _check_space(self, size: int) -> None:
        # Beforehand, for Orbax fails in many threads at once, each with a traceback.
        needed, free = _COPIES * size + _SMALL_FILES, shutil.disk_usage(self._folder).free
        if free < needed:
            raise self._unsaved(f"{free / 2**20:.1f} of {needed / 2**20:.1f} MiB are free")

    def _unwritable(self, error: Exception) -> UserError:
        # A save that failed leaves the manager without knowledge of those before it.
        self._manager.reload()
        return self._unsaved(str(error).splitlines()[0][:200] if str(error) else repr(error))

    def _unsaved(self, reason: str) -> UserError:
        return UserError(
            f"the checkpoint could not be saved in {self._folder} ({reason}): free some disk "
            f"space and run again to resume from step {self.last_step or 0}"
        )

    def restore_params(self, step: int) -> Params:
        """The whole model's parameters at ``step``.

        Raises:
            UserError: The checkpoint is damaged.
        """
        return self._restored(step, params=ocp.args.StandardRestore())["params"]

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved at ``step`` beside the arrays.

        Raises:
            UserError: The checkpoint is damaged.
        """
        return self._restored(step, progress=ocp.args.JsonRestore())["progress"]

    def restore(self, step: int, template: TrainState, freeze: Freeze) -> tuple[Params, TrainState]:
        """Restores what training goes on from.

        Args:
            step: One of the saved steps.
            template: A state of the same shapes.
            freeze: Which of the parameters belong to the state.

        Returns:
            The whole model's parameters, and the training state.

        Raises:
            UserError: The checkpoint is damaged.
        """
        restored = self._restored(
            step,
            params=ocp.args.StandardRestore(),
            optimizer=ocp.args.StandardRestore(_host_copy(_optimizer(template))),
        )
        params = restored["params"]
        trainable, _ = freeze.split(params)
        return params, template.replace(trainable=trainable, **restored["optimizer"])

    def restore_data(self, step: int, data: grain.DatasetIterator[Any]) -> None:
        """Moves an iterator over the same data to its place at ``step``.

        Raises:
            UserError: The checkpoint is damaged.
        """
        self._restored(step, data=grain.checkpoint.CheckpointRestore(data))

    def restore_reference(self, step: int) -> dict[str, Any]:
        """The arrays that were saved as ``reference``.

        Raises:
            UserError: The checkpoint is damaged.
        """
        return self._restored(step, reference=ocp.args.StandardRestore())["reference"]

    def _restored(self, step: int, **items: Any) -> Any:
        """Those parts of a checkpoint, by name."""
        with self._damage_told(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _damage_told(self, step: int) -> Iterator[None]:
        try:
            yield
        except (KeyError, OSError, ValueError) as error:
            raise UserError(
                f"the checkpoint {self._folder / str(step)} is damaged "
                f"({str(error).splitlines()[0][:200]}): remove it and run train again"
            ) from error

    def close(self) -> None:
        """Waits for the background work and releases the folder."""
        self._manager.close()
