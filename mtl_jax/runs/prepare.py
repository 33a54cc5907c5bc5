"""From settings to runs that are ready to train: their data, first phase, and learning rate."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from mtl_jax.config.train import TrainConfig
from mtl_jax.core import distributed
from mtl_jax.core.errors import UserError
from mtl_jax.runs.head_rate import chosen_head_rate, recorded_head_rate
from mtl_jax.runs.notes import told_once
from mtl_jax.runs.phase_plan import parted
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.precision import with_dtype
from mtl_jax.training.inputs import Inputs, open_inputs

# What may differ between runs that are trained at once.
_OF_SEED = ("seed", "workdir")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Runs with different seeds, before their first step.

    Attributes:
        runs: One for each seed, in its first phase.
        tell: Says what is to be said of their data and settings; a second call says nothing.
    """

    runs: Sequence[PhaseRun]
    tell: Callable[[], None]

    @property
    def go_together(self) -> bool:
        """Whether one step can take a batch of each seed.

        It can't where a later phase freezes what an earlier one has trained, for then the seeds
        have no frozen part in common; nor in several processes, nor where devices share the
        parameters, for each seed is whole on one device.
        """
        first = self.runs[0]
        sharded = first.config.shard is not None
        return len(self.runs) == 1 or not (
            parted(first.plans) or distributed.count() > 1 or sharded
        )


def prepare_runs(configs: Sequence[TrainConfig], shared: Inputs | None) -> Prepared:
    """Reads the data and the backbone, lays out the phases, and finds the heads' learning rate.

    Args:
        configs: The settings, at least one, which differ in ``seed`` and ``workdir`` only.
        shared: What ``open_inputs`` has given to a caller who shares it between runs, and tells
            of them once for all; None to read it here.

    Raises:
        UserError: The settings or the data are at fault.
    """
    configs = [config.absolute() for config in configs]
    _refuse_unlike(configs)
    folders = [config.workdir for config in configs]
    configs = [with_dtype(config, folders) for config in configs]
    with distributed.collective_errors():
        inputs = shared or open_inputs(configs[0])
        runs = [PhaseRun(config, inputs, together=len(configs) > 1) for config in configs]
        inputs.refuse_long()
    tells = shared is None
    tell = functools.cache(functools.partial(told_once, runs[0]) if tells else lambda: None)
    if runs[0].plans[0].rate_is_open:
        rate = _head_learning_rate(runs, tell)
        runs = [run.with_head_learning_rate(rate) for run in runs]
    return Prepared(runs, tell)


def _head_learning_rate(runs: Sequence[PhaseRun], tell: Callable[[], None]) -> float:
    """The rate with which one of the runs was begun, else that of a sweep."""
    configs = [run.config for run in runs]
    if (rate := distributed.call_on_main(lambda: recorded_head_rate(configs))) is not None:
        return rate
    # What looks wrong with the data is seen before anyone waits for a sweep.
    tell()
    with distributed.collective_errors():
        rate = chosen_head_rate(runs[0])
    # Of several processes each finds one; a rounding may tell them apart.
    return distributed.broadcast(rate)


def _refuse_unlike(configs: Sequence[TrainConfig]) -> None:
    if len({config.workdir for config in configs}) < len(configs):
        raise UserError("seeds that are trained at once need a --workdir each")
    for field in dataclasses.fields(TrainConfig):
        first, *others = (getattr(config, field.name) for config in configs)
        unlike = [value for value in others if value != first]
        if unlike and field.name not in _OF_SEED:
            raise UserError(
                f"runs that are trained at once may differ in {' and '.join(_OF_SEED)}, but "
                f"{field.name} is {first!r} and {unlike[0]!r}: train them one after the other"
            )
