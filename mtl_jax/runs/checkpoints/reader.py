"""The checkpoints in a folder, read: nothing is given that is not what was saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from mtl_jax.core.errors import UserError, cannot_read
from mtl_jax.freezing.partition import Params, Partition
from mtl_jax.runs.checkpoints import arrays, earlier, frozen_leaves, manifest
from mtl_jax.runs.checkpoints.handler import file_of
from mtl_jax.runs.checkpoints.manifest import DamageError, Manifest
from mtl_jax.runs.workdir import FROZEN
from mtl_jax.training.program import TrainState

# The part of a checkpoint that has the parameters of the best one, where it is not that itself and
# there is none of it.
BEST = "best"


def optimizer_tree(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state beside the parameters."""
    tree = {"opt_state": state.opt_state, "step": state.step, "rng": state.rng}
    # Where the weights are fixed there is nothing of it, in checkpoints of before it was, too.
    return {**tree, "weighting": state.weighting} if jax.tree.leaves(state.weighting) else tree


class CheckpointReader:
    """The folder ``checkpoints`` of a run, which another process may be writing to.

    Each step has a folder. Its parts: ``params`` (what may differ from the pre-trained encoder,
    which stands in the folder ``frozen`` beside), ``optimizer`` (state, step, key), where the best
    one has no folder of its own its parameters, ``best``, where there are any ``reference`` arrays,
    and the ``manifest``, against which the others are checked
    whenever they are read. The one of a run's end may have no more than the best parameters.
    Those of earlier versions have the whole model: see ``earlier``.
    """

    def __init__(self, folder: Path, run: Mapping[str, str] | None = None):
        """Opens it.

        Args:
            folder: The folder, which need not be there.
            run: What the run is, see ``record.identity``; a checkpoint of another one counts as
                damaged. None to take any.
        """
        self.folder, self.run = folder, run
        self._frozen: dict[str, dict[str, np.ndarray]] = {}

    def know_frozen(self, digest: str, params: Params) -> None:
        """Takes the pre-trained encoder of a digest from memory, where its file has been checked.

        Args:
            digest: Its digest.
            params: Its parameters, which must not change.
        """
        self._frozen[digest] = arrays.named(params)

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

    @property
    def best_phase(self) -> int | None:
        """The phase that the best one is of, where it has no checkpoint of its own."""
        last = self.last_step
        best_of = None if last is None else self.manifest(last).best_of
        return None if best_of is None else best_of["phase"]

    def manifest(self, step: int) -> Manifest:
        """What the checkpoint at ``step`` says of itself.

        Raises:
            DamageError: That is damaged, or of another run.
            UserError: It can't be read.
        """
        known = manifest.read(self.folder / str(step))
        if self.run is not None:
            manifest.refuse_other_run(self.folder / str(step), known, self.run)
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
            UserError: The encoder beside it is.
        """
        return self._whole(self._arrays(step, "params"), self.manifest(step).frozen)

    def _whole(self, leaves: dict[str, np.ndarray], digest: str | None) -> Params:
        """All parameters, with those that the encoder of a digest has."""
        if digest is not None:
            if digest not in self._frozen:
                beside = self.folder.parent / FROZEN
                self._frozen[digest] = frozen_leaves.read(beside, digest)
            base = {f"backbone/{name}": leaf for name, leaf in self._frozen[digest].items()}
            leaves = {**base, **leaves}
        return arrays.nested(leaves)

    def restore_best(self) -> Params | None:
        """As ``restore_params`` of the best scored checkpoint; None where there is none.

        Raises:
            DamageError: It is damaged.
        """
        looked_at: set[int] = set()
        while (step := self.last_step) is not None:
            try:
                known = self.manifest(step)
                if known.best is None:
                    return None
                if known.best_of is not None:
                    return self._whole(self._arrays(step, BEST), known.best_of["frozen"])
                step = known.best[0]
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
        found, wanted = self._arrays(step, "optimizer"), optimizer_tree(template)
        shapes = {name: np.shape(leaf) for name, leaf in arrays.named(wanted).items()}
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
        return arrays.nested(self._arrays(step, "reference"))

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
        data.set_state(known.data)
        return True

    def _arrays(self, step: int, part: str) -> dict[str, np.ndarray]:
        """The leaves of a part, by name."""
        folder, digests = self.folder / str(step), self.manifest(step).digests
        if part not in digests:
            raise DamageError(folder, f"it has no {part}")
        try:
            if manifest.is_earlier(folder):
                found = earlier.read(folder / part)
            else:
                found = arrays.read(folder / manifest.ITEM / file_of(part))
        except OSError as error:
            manifest.refuse_access(folder / manifest.ITEM / file_of(part), error)
            raise DamageError(folder, f"{part} can't be read") from error
        except ValueError as error:
            raise DamageError(folder, f"{part} can't be read") from error
        if arrays.digest(found) != digests[part]:
            raise DamageError(folder, f"{part} has other values than it had")
        return found

    def check(self, step: int) -> None:
        """Reads all of a checkpoint.

        Raises:
            DamageError: It is damaged.
        """
        for part in self.manifest(step).digests:
            self._arrays(step, part)
