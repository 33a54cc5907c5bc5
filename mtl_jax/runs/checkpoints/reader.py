"""The checkpoints in a folder, read: nothing is given that is not what was saved."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.type_handlers import (
    ArrayHandler,
    NumpyHandler,
    ParamInfo,
    RestoreArgs,
    create_type_handler_registry,
)

from mtl_jax.core.errors import UserError, cannot_read
from mtl_jax.freezing.partition import Params, Partition
from mtl_jax.runs.checkpoints import manifest
from mtl_jax.runs.checkpoints.manifest import DamageError, Manifest
from mtl_jax.training.step import TrainState


def optimizer_tree(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state beside the parameters."""
    tree = {"opt_state": state.opt_state, "step": state.step, "rng": state.rng}
    # Where the weights are fixed there is nothing of it, in checkpoints of before it was, too.
    return {**tree, "weighting": state.weighting} if jax.tree.leaves(state.weighting) else tree


class _WaitsForAll(NumpyHandler):
    """Reads arrays; where one can't be, waits for the others before it says so.

    Who does not wait closes the event loop under them, and each prints a traceback.
    """

    async def deserialize(
        self, infos: Sequence[ParamInfo], args: Sequence[RestoreArgs] | None = None
    ) -> list[np.ndarray]:
        """As of Orbax."""
        each = zip(infos, args or [RestoreArgs()] * len(infos), strict=True)
        reading = (NumpyHandler.deserialize(self, [info], [how]) for info, how in each)
        found = await asyncio.gather(*reading, return_exceptions=True)
        if failed := [one for one in found if isinstance(one, BaseException)]:
            raise failed[0]
        return [array for one in found if not isinstance(one, BaseException) for array in one]


class CheckpointReader:
    """The folder ``checkpoints`` of a run, which another process may be writing to.

    Each step has a folder. Its parts: ``params`` (the whole model), ``optimizer`` (state, step,
    key), where there are any ``reference`` arrays, ``data`` (the data iterator of every
    process), and the ``manifest``, against which the others are checked whenever they are read.
    """

    def __init__(self, folder: Path, run: Mapping[str, str] | None = None):
        """Opens it.

        Args:
            folder: The folder, which need not be there.
            run: What the run is, see ``record.identity``; a checkpoint of another one counts as
                damaged. None to take any.
        """
        self.folder, self.run = folder, run

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, whole or not, in their order.

        Raises:
            UserError: The folder can't be read.
        """
        try:
            names = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise cannot_read(self.folder, error) from error
        return sorted(int(name) for name in names if name.isdecimal())

    @property
    def last_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the best scored checkpoint, as the newest one says; or None."""
        last = self.last_step
        best = None if last is None else self.manifest(last).best
        return best and best[0]

    def manifest(self, step: int) -> Manifest:
        """What the checkpoint at ``step`` says of itself.

        Raises:
            DamageError: That is damaged, or of another run.
            UserError: It can't be read.
        """
        known = manifest.read(self.folder / str(step))
        if self.run is not None:
            manifest.refuse_other(self.folder / str(step), known, self.run)
        return known

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved at ``step`` beside the arrays.

        Raises:
            DamageError: The checkpoint is damaged.
        """
        return self.manifest(step).progress

    def restore_params(self, step: int) -> Params:
        """The whole model's parameters at ``step``.

        Raises:
            DamageError: The checkpoint is damaged.
        """
        return self._arrays(step, "params")

    def restore_best(self) -> Params | None:
        """As ``restore_params`` of the best scored checkpoint; None where there is none.

        Raises:
            DamageError: It is damaged.
        """
        looked_at: set[int] = set()
        while (step := self.last_step) is not None:
            try:
                if (best := self.manifest(step).best) is None:
                    return None
                step = best[0]
                return self.restore_params(step)
            except DamageError:
                # Who trains the run may have removed it meanwhile: there are newer ones then.
                if step in looked_at or (self.folder / str(step)).exists():
                    raise
                looked_at.add(step)
        return None

    def restore(
        self, step: int, template: TrainState, partition: Partition
    ) -> tuple[Params, TrainState]:
        """Restores what training goes on from.

        Args:
            step: One of the saved steps.
            template: A state of the same shapes.
            partition: Which of the parameters belong to the state.

        Returns:
            The whole model's parameters, and the training state.

        Raises:
            DamageError: The checkpoint is damaged.
            UserError: The optimizer keeps other state now.
        """
        params = self.restore_params(step)
        found, wanted = manifest.named(self._arrays(step, "optimizer")), optimizer_tree(template)
        shapes = {name: np.shape(leaf) for name, leaf in manifest.named(wanted).items()}
        if {name: np.shape(leaf) for name, leaf in found.items()} != shapes:
            raise UserError(
                f"the optimizer's state in {self.folder / str(step)} has other parts than that of "
                "this run: use the versions of the packages that it was saved with, which "
                "config.json names, or another --workdir"
            )
        restored = jax.tree.unflatten(jax.tree.structure(wanted), [found[name] for name in shapes])
        trainable, _ = partition.split(params)
        return params, template.replace(trainable=trainable, **restored)

    def restore_reference(self, step: int) -> dict[str, Any]:
        """The arrays that were saved as ``reference``.

        Raises:
            DamageError: The checkpoint is damaged.
        """
        return self._arrays(step, "reference")

    def restore_data(self, step: int, data: grain.DatasetIterator[Any]) -> bool:
        """Moves an iterator over the same data to its place at ``step``.

        Returns:
            Whether it has been: not where another number of processes has saved.

        Raises:
            DamageError: The checkpoint is damaged.
        """
        known = self.manifest(step)
        if known.processes != jax.process_count():
            return False
        data.set_state(self._data_state(step, known, jax.process_index()))
        return True

    def _data_state(self, step: int, known: Manifest, process: int) -> Any:
        """The state of a process's iterator, as Grain's handler has written it."""
        name = f"data/process_{process}-of-{known.processes}.json"
        folder = self.folder / str(step)
        try:
            state = json.loads((folder / name).read_text(encoding="utf-8"))
        except OSError as error:
            manifest.refuse_access(folder / name, error)
            raise DamageError(folder, f"{name} can't be read") from error
        except (ValueError, RecursionError) as error:
            raise DamageError(folder, f"{name} can't be read") from error
        if state != known.data:
            raise DamageError(folder, f"{name} is not what was saved")
        return state

    def _arrays(self, step: int, part: str) -> dict[str, Any]:
        """A part as nested dicts and lists of numpy arrays."""
        folder, digests = self.folder / str(step), self.manifest(step).digests
        if part not in digests:
            raise DamageError(folder, f"it has no {part}")
        # Orbax warns where there is none for jax.Array, of which nothing here is saved.
        types = create_type_handler_registry(
            (np.ndarray, _WaitsForAll()), (jax.Array, ArrayHandler())
        )
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
        try:
            tree = handler.restore(epath.Path(folder.absolute() / part), args=_AS_SAVED)
            found = manifest.digest(tree)
        except Exception as error:  # (there is no end to what broken files can be to a library)
            _refuse_unreachable(folder / part)
            raise DamageError(folder, f"{part} can't be read") from error
        finally:
            handler.close()
        if found != digests[part]:
            raise DamageError(folder, f"{part} has other values than it had")
        return tree

    def check(self, step: int) -> None:
        """Reads all of a checkpoint.

        Raises:
            DamageError: It is damaged.
        """
        known = self.manifest(step)
        for part in known.digests:
            self._arrays(step, part)
        for process in range(known.processes):
            self._data_state(step, known, process)


def _refuse_unreachable(folder: Path) -> None:
    """Refuses to go on where a file in a folder, or its list of files, can't be reached.

    Raises:
        UserError: One can't be.
    """
    try:
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                next(path.iterdir(), None)
            else:
                path.open("rb").close()
    except OSError as error:
        manifest.refuse_access(Path(error.filename or folder), error)


_AS_SAVED = ocp.args.PyTreeRestore()
