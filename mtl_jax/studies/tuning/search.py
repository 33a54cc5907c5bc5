"""An arm that trains some of the backbone is tuned by an Optuna study, run after run."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError
from mtl_jax.runs.flops import run_flops
from mtl_jax.runs.loop import train_seeds
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.workdir import Workdir
from mtl_jax.studies.budget import Budget
from mtl_jax.studies.tuning.record import Trial, TuningRecord
from mtl_jax.studies.tuning.space import Space, rounded
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.metrics import mean_score

if TYPE_CHECKING:
    import optuna

# Trials of random rates before the sampler looks at what has been found, and before the pruner
# ends any.
_AT_RANDOM, _WHOLE = 5, 4
# Runs of any length are held against each other after each quarter of their steps.
_PARTS = 4
_LENGTH = "length"
# Where Optuna keeps which line of the record a trial becomes.
_NUMBER = "number"


class _EndedEarlyError(UserError):
    """A trial that the pruner has ended."""


def search(
    config: TrainConfig, inputs: Inputs, space: Space, budget: Budget, record: TuningRecord
) -> None:
    """Runs trials until the budget is used up; goes on with those that are there.

    The first has the default rates and length. Those to come are asked of Optuna's TPE sampler,
    whose seed depends on the trial's number alone, and those that do worse than half of the
    others are ended by its median pruner. What Optuna knows stands in ``optuna.log`` beside the
    trials; a trial that a kill has cut short is begun again, and goes on from its checkpoint.

    Args:
        config: The run, of the seed whose texts the trials have.
        inputs: Those of it.
        space: What is searched.
        budget: For this arm.
        record: Where the trials are left.
    """
    import optuna

    study = _study(record)
    while True:
        done = record.trials()
        spent = sum(trial.flops for trial in done)
        study.sampler = _sampler(len(done))
        trial = _next(study, space, done)
        settings = _settings(trial, space)
        run = _planned(dataclasses.replace(config, **settings), inputs, record)
        flops = sum(phase.total for phase in run_flops(run, [p.steps for p in run.plans]))
        if not budget.has_room(len(done), spent, flops):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        outcome = _tried(run, trial, settings, space, flops)
        # In this order: what the record has, Optuna can be told later.
        record.add(len(done), outcome, config.seed)
        _tell(study, trial, outcome)
        shutil.rmtree(run.config.workdir, ignore_errors=True)


def _study(record: TuningRecord) -> optuna.Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = record.folder / "optuna.log"
    _drop_unfinished_line(journal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(
            storage=storage,
            study_name=record.name,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_WHOLE, n_warmup_steps=1),
            load_if_exists=True,
        )


def _drop_unfinished_line(journal: Path) -> None:
    """Cuts off what a kill has left of a line, to which the next one would be glued."""
    if journal.exists():
        content = journal.read_bytes()
        if not content.endswith(b"\n"):
            journal.write_bytes(content[: content.rfind(b"\n") + 1])


def _sampler(number: int) -> optuna.samplers.BaseSampler:
    import optuna

    return optuna.samplers.TPESampler(n_startup_trials=_AT_RANDOM, seed=number)


def _next(study: optuna.Study, space: Space, done: Sequence[Trial]) -> optuna.Trial:
    """The trial after those that are done, which a call that was killed may have begun."""
    import optuna

    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    for left in running:
        if (number := left.user_attrs.get(_NUMBER, len(done))) < len(done):
            _tell(study, left.number, done[number])
            continue
        # Its run is in its folder, whatever its number is now.
        study.enqueue_trial(left.params)
        study.tell(left.number, state=optuna.trial.TrialState.FAIL)
    if not running and not done:
        first = {rate.field: rate.default for rate in space.rates}
        study.enqueue_trial({**first, _LENGTH: 1.0})
    trial = study.ask()
    trial.set_user_attr(_NUMBER, len(done))
    return trial


def _settings(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    rates = {
        rate.field: rounded(trial.suggest_float(rate.field, rate.low, rate.high, log=True))
        for rate in space.rates
    }
    times = trial.suggest_categorical(_LENGTH, tuple(space.lengths))
    return {**rates, **space.lengths[times]}


def _planned(config: TrainConfig, inputs: Inputs, record: TuningRecord) -> PhaseRun:
    """The run of a trial, in a folder that only equal settings have."""
    name = hashlib.sha256(repr(config).encode()).hexdigest()[:12]
    folder = record.folder / f"trial-{name}"
    return PhaseRun(dataclasses.replace(config, workdir=str(folder)), inputs)


def _tried(
    run: PhaseRun, trial: optuna.Trial, settings: Mapping[str, Any], space: Space, flops: float
) -> Trial:
    total = sum(plan.steps for plan in run.plans)
    # By step: a call that was killed may have come so far.
    scores = _measured(run)
    reported = 0

    def observe(step: int, score: float) -> None:
        nonlocal reported
        scores[step] = score
        part = int(_PARTS * step / total + 1e-9)
        while reported < part:
            reported += 1
            trial.report(max(each for at, each in scores.items() if at <= step), reported)
        if step < total and reported and trial.should_prune():
            raise _EndedEarlyError("ended early: other trials are better")

    (outcome,) = train_seeds([run.config], run.inputs, observe)
    pruned = isinstance(outcome, _EndedEarlyError)
    failed = isinstance(outcome, UserError) and not pruned
    if failed:
        say(f"a trial failed: {outcome}")
    curve = [(step / total, score) for step, score in sorted(scores.items())]
    part = curve[-1][0] if pruned else 1.0
    kept = [score for _, score in curve]
    kept = kept[-1:] if run.plans[-1].keeps_end else kept
    fields = [rate.field for rate in space.rates]
    return Trial(
        rates={field: settings[field] for field in fields},
        length={name: value for name, value in settings.items() if name not in fields},
        validation=None if failed or not kept else max(kept),
        curve=curve,
        flops=flops * part,
        pruned=pruned,
    )


def _measured(run: PhaseRun) -> dict[int, float]:
    """By step the scores that a call before has left of a trial."""
    folder = Workdir(run.config.workdir)
    records = folder.metrics.records() if folder.exists else []
    return {
        record["step"]: mean_score(record["validation"], run.tasks)
        for record in records
        if record["event"] == "epoch"
    }


def _tell(study: optuna.Study, trial: optuna.Trial | int, outcome: Trial) -> None:
    import optuna

    if outcome.pruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    elif outcome.validation is None:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial, outcome.validation)
