"""The arms of a study at their best: each is tuned once, for all of its seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.config.train import TrainConfig
from mtl_jax.core import distributed
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.workdir import TUNING, Workdir
from mtl_jax.studies.budget import Budget
from mtl_jax.studies.settings import Arm
from mtl_jax.studies.tuning.record import TuningRecord, applied
from mtl_jax.studies.tuning.search import search
from mtl_jax.studies.tuning.space import space_of
from mtl_jax.studies.tuning.sweep import sweep_arm
from mtl_jax.studies.turns import turn
from mtl_jax.training.inputs import Inputs, open_inputs


def tuned(
    arms: Sequence[Arm], inputs: Inputs, folder: Path, budget: Budget, *, alone: bool = False
) -> list[Arm]:
    """Arms that differ in the seed alone, with the rates and the length that do best.

    They are chosen on validation, the test split is not read. The trials have the first of these
    seeds; what was chosen before, with whichever seed, stays.

    Args:
        arms: The arms.
        inputs: Those of the first.
        folder: Of the study.
        budget: What they may cost.
        alone: Whether no worker can be at it, too.

    Raises:
        UserError: Several processes train each arm together, or nothing can be written.
    """
    record = TuningRecord(folder, arms[0])
    if (found := record.chosen()) is None:
        if distributed.count() > 1:
            raise UserError(
                "--tune does not work with several processes that train each arm together"
            )
        with turn(record.folder, "search", record.is_done, alone=alone) as mine:
            found = _choose(arms[0], inputs, budget, record) if mine else record.chosen()
    return [applied(arm, found) for arm in arms]


def tuned_run(config: TrainConfig, budget: Budget) -> TrainConfig:
    """A run by itself with the rates and the length that do best, chosen on validation.

    The trials are left in the folder ``tuning`` in that of the run, from where another call goes
    on; what was chosen once stays.

    Args:
        config: The run.
        budget: What the trials may cost.

    Raises:
        UserError: As of ``tuned``; or the folder has a run that was begun without.
    """
    config = config.absolute()
    workdir = Workdir(config.workdir)
    folder, arm = workdir.path / TUNING, Arm(config.name, config)
    if workdir.exists and TuningRecord(folder, arm).chosen() is None:
        raise UserError(
            f"{workdir.path} has a run that was begun without --tune: leave it out, or use another "
            "--workdir"
        )
    return tuned([arm], open_inputs(config), folder, budget)[0].config


def _choose(arm: Arm, inputs: Inputs, budget: Budget, record: TuningRecord) -> dict[str, object]:
    record.prepare()
    config = dataclasses.replace(arm.config, callbacks=())
    space = space_of(PhaseRun(config, inputs))
    if space.rates:
        say(f"tuning {arm.name} on validation: {budget}")
        tune = sweep_arm if space.heads_alone else search
        tune(config, inputs, space, budget, record)
    found = record.choose(str(budget))
    if found["chosen"]:
        words = ", ".join(f"{name} {value:g}" for name, value in found["chosen"].items())
        say(f"{arm.name}: {found['validation']:.3f} on validation with {words}")
    return found
