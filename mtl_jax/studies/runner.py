"""Trains the arms of a study group by group, and goes on with a study that was cut short.

An arm that fails takes no other with it; it is counted, and tried again at the next call. The
report on what is done so far is written again and again, and once more when the study is
interrupted; a call on a folder in which all is done writes it anew.

A study can be trained by several workers at once, on any machines that share its folder: see
``work_queue``. Each takes one arm after the other that no other has, and one more call gathers
what they have left into the report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.config.train import TrainConfig
from mtl_jax.core import distributed, preemption
from mtl_jax.core.command_line import one_line
from mtl_jax.core.console import say
from mtl_jax.core.errors import Preempted, UnsavedError, UserError
from mtl_jax.core.file_lock import LEASE_SECONDS
from mtl_jax.runs.precision import with_dtype
from mtl_jax.runs.workdir import Workdir
from mtl_jax.studies.environment import circumstances
from mtl_jax.studies.inputs_pool import InputsPool
from mtl_jax.studies.judge import note_circumstances
from mtl_jax.studies.leases import Claims
from mtl_jax.studies.results_store import WEIGHTS, ResultsStore, listed, opened, texts_of
from mtl_jax.studies.settings import Arm, Plan, StudySettings
from mtl_jax.studies.stats import power
from mtl_jax.studies.stats.formatting import count_of
from mtl_jax.studies.stats.results import BASELINE, by_setting
from mtl_jax.studies.tuning.record import gather_trials
from mtl_jax.studies.work_queue import FOLDER, WorkQueue

if TYPE_CHECKING:
    from mtl_jax.studies.stats.results import Result
    from mtl_jax.training.inputs import Inputs


def carry_out(
    study: StudySettings, plan_of: Callable[[Any, InputsPool], Plan], command: str
) -> int:
    """Trains what a study asks for and is not done yet, and writes its report; or a part of that.

    Args:
        study: The settings.
        plan_of: What these make of it.
        command: How it was called, for the report.

    Returns:
        How many arms failed, or were skipped; of a worker 0, for others may have arms of it yet.

    Raises:
        UserError: The settings are wrong, the folder holds a study with others, or no arm could
            be trained.
    """
    started, pool = time.time(), InputsPool()
    settled = with_dtype(study.absolute(), [study.workdir])
    plan = dataclasses.replace(plan_of(settled, pool), tune=study.budget)
    if study.list_arms:
        for line in listed(plan):
            print(line)
        return 0
    if study.worker:
        work(plan, pool, study.tries, study.lease_seconds)
        return 0
    return (gather if study.gather else conduct)(plan, pool, command, started)


def conduct(plan: Plan, pool: InputsPool, command: str, started: float) -> int:
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
    with opened(plan) as ledger:
        distributed.call_on_main(ledger.prepare)
        reporter = _Reporter(plan, ledger, pool, command, started)
        _say_all([*plan.notes, *_power_note(plan, pool, ledger.results())])
        with _queue(ledger, plan, tries=1, alone=True) as queue:
            try:
                _train_arms(plan, queue, pool, ledger, ledger.add, reporter)
            except (KeyboardInterrupt, Preempted):
                reporter.so_far()
                raise
        return reporter.end()


def work(plan: Plan, pool: InputsPool, tries: int = 2, lease_seconds: float = LEASE_SECONDS) -> int:
    """Trains arms that no other worker has, until none is left, each in its own folder.

    Arms that other workers have are left to them; of one that has died, whoever comes next to
    look takes its arms. There is no report: see ``gather``. Where this process was silent for its
    lease, as one that was suspended, and has lost its arm, it ends at once with status 75.

    Args:
        plan: The study.
        pool: What has been read for it so far.
        tries: How often an arm that fails is trained, by all workers together.
        lease_seconds: How long this worker may give no sign of life before others take its arms.

    Returns:
        How many trainings failed.

    Raises:
        UserError: The folder holds another study, or a process that is no worker is in it.
    """
    with opened(plan, shared=True) as ledger:
        _say_all(plan.notes)
        with _queue(ledger, plan, tries, lease_seconds) as queue:
            _train_arms(plan, queue, pool, ledger, ledger.leave)
        return len(ledger.failures)


def gather(plan: Plan, pool: InputsPool, command: str, started: float) -> int:
    """Writes the report on what workers have left so far, and trains nothing.

    Args:
        plan: The study.
        pool: What has been read for it so far.
        command: How it was called, for the report.
        started: When, in seconds since the epoch.

    Returns:
        How many arms have no result.

    Raises:
        UserError: The folder holds another study, a process that is no worker is in it, or none
            of its arms has a result.
    """
    with opened(plan, shared=True) as ledger:
        lacking = distributed.call_on_main(ledger.collect)
        for arm, failure in lacking:
            ledger.failed(ledger.arms[arm], failure)
        if not ledger.results():
            raise UserError(
                f"no arm of the study in {plan.workdir} has a result yet; of the first one: "
                f"{ledger.failures[0]['error']}"
            )
        return _Reporter(plan, ledger, pool, command, started).end()


def _say_all(notes: Sequence[str]) -> None:
    for note in notes:
        say(note)


def _power_note(plan: Plan, pool: InputsPool, done: Sequence[Result]) -> list[str]:
    """What the study can tell, as a note; of data that have not been read nothing is said.

    The scatter of the results that there are takes the place of what is assumed.
    """
    arms = [arm for group in plan.groups for arm in group]
    inputs = next((found for arm in arms if (found := pool.opened(arm.config))), None)
    if inputs is None:
        return []
    seeds = len({arm.config.seed for arm in arms})
    trained = len({arm.name for arm in arms if arm.name != BASELINE})
    first = next(iter(by_setting(done).values()), [])
    return [power.before(seeds, trained, inputs.corpus.test_counts(), first)]


@dataclasses.dataclass(frozen=True)
class _Reporter:
    """Writes the report of a study; the attributes are the arguments of ``conduct``."""

    plan: Plan
    ledger: ResultsStore
    pool: InputsPool
    command: str
    started: float

    def report(self) -> Path:
        from mtl_jax.studies.baselines import gather_baselines

        ledger, plan = self.ledger, self.plan
        gather_trials(ledger.folder)
        context: dict[str, Any] = {
            **circumstances(self.command, self.started),
            "study": plan.record.get("study"),
            "question": plan.question,
            "data": self.pool.notes(),
            "corpora": self.pool.corpora(),
            "seeds": list(dict.fromkeys(arm.config.seed for arm in ledger.arms)),
            "settings": dict(plan.settings),
            "baselines": gather_baselines(ledger.folder),
            "asked": dict(Counter(arm.name for arm in ledger.arms)),
        }
        if ledger.devices:
            # Other processes trained them, perhaps beside each other: times say less then.
            context["machine"] += (
                f"; arms trained by workers, each on {' or '.join(ledger.devices)}"
            )
        note_circumstances(ledger.folder, ledger.failures, context)
        return plan.report(ledger.folder, ledger.results(), ledger.failures, context)

    def so_far(self) -> None:
        if not distributed.is_main() or not self.ledger.results():
            return
        try:
            # Its table is for the end: here it would stand between the lines on the arms.
            with contextlib.redirect_stdout(io.StringIO()):
                self.report()
        except Exception as error:  # noqa: BLE001  (the arms to come must not be lost with it)
            say(f"there is no report so far: {one_line(error)}")

    def end(self) -> int:
        """Writes the last report; how many arms have failed."""
        return distributed.call_on_main(self._end)

    def _end(self) -> int:
        if not (count := len(self.ledger.results())):
            raise UserError(
                f"no arm of the study in {self.plan.workdir} could be trained; the first failed "
                f"with: {self.ledger.failures[0]['error']}"
            )
        path = self.report()
        if not self.ledger.failures:
            self.ledger.remove_shared()
        took = time.time() - self.started
        # Arms that were done before, or by workers, took longer than that.
        say(f"{count_of(count, 'arm')}, this call took {took:.0f} s; the report is {path}")
        return len(self.ledger.failures)


class _Queue:
    """The groups of a study that are to be trained here, one after the other.

    Of several processes that train each arm together the first one claims them.
    """

    def __init__(self, ledger: ResultsStore, plan: Plan, queue: WorkQueue | None):
        self.waiting = ledger.waiting(plan.groups)
        self._queue = queue
        self._arms = {arm.claim: arm for group in self.waiting for arm in group}
        self._inputs = ledger.inputs

    def groups(self) -> Iterator[tuple[list[Arm], list[TrainConfig]]]:
        """Claims one group after the other.

        Yields:
            The group, and a run for each of the inputs that it and later ones need here.
        """
        while (taken := distributed.call_on_main(self._take))[0]:
            group = [self._arms[name] for name in taken[0]]
            yield group, [group[0].config, *(self._inputs[number] for number in taken[1])]

    def _take(self) -> tuple[list[str], list[int]]:
        if self._queue is None:
            return [], []
        names = self._queue.take()
        for name in filter(self._queue.was_left_by_dead, names):
            # A file server may keep the lock of a machine that is gone, for ever on NFSv3.
            Workdir(self._arms[name].config.workdir).forget_lock()
        return names, self._queue.kept_inputs

    def end(self, arm: Arm, outcome: Mapping[str, Any], seconds: float) -> None:
        """Says how the training of an arm has ended, after so many seconds."""
        if self._queue is None:
            return
        if "error" in outcome:
            self._queue.end(arm.claim, "failed", outcome)
        else:
            self._queue.end(arm.claim, "done", {"seconds": round(seconds, 3)})


@contextlib.contextmanager
def _queue(
    ledger: ResultsStore,
    plan: Plan,
    tries: int,
    lease_seconds: float = LEASE_SECONDS,
    *,
    alone: bool = False,
) -> Iterator[_Queue]:
    with contextlib.ExitStack() as stack:
        queue = None
        if distributed.is_main():
            folder = ledger.folder / FOLDER
            claims = stack.enter_context(
                contextlib.closing(Claims(folder, lease_seconds, alone=alone))
            )
            queue = WorkQueue(claims, ledger.units(plan.groups), tries, alone=alone)
            ledger.name_arms(claims.name)
        yield _Queue(ledger, plan, queue)


def _train_arms(
    plan: Plan,
    queue: _Queue,
    pool: InputsPool,
    ledger: ResultsStore,
    keep: Callable[[Arm, Mapping[str, Any]], None],
    reporter: _Reporter | None = None,
) -> None:
    """Trains what the queue gives; ``keep`` takes the outcome of each arm."""
    distributed.call_on_all(functools.partial(_refuse_impossible, queue.waiting, pool))
    reported, trained = time.monotonic(), 0
    for group, needed in queue.groups():
        began = time.monotonic()
        if reporter and trained and began - reported >= reporter.plan.report_every:
            reporter.so_far()
            reported = time.monotonic()
        preemption.leave_if_due(anew=True)
        pool.keep_only(needed)
        for arm in group:
            say(f"{ledger.place(arm)}: {arm}")
        for arm, outcome in zip(group, _train_group(group, plan, pool, ledger), strict=True):
            keep(arm, outcome)
            queue.end(arm, outcome, (time.monotonic() - began) / len(group))
        trained += len(group)


def _refuse_impossible(waiting: Sequence[Sequence[Arm]], pool: InputsPool) -> None:
    """Refuses, before any arm is trained, one that can't be on the inputs that are there.

    Raises:
        UserError: Such as a rule that matches nothing; the arm is named.
    """
    from mtl_jax.runs.phase_run import PhaseRun

    kinds = {(arm.name, str(arm.setting)): arm for group in waiting for arm in group[:1]}
    for arm in kinds.values():
        if inputs := pool.opened(arm.config):
            try:
                PhaseRun(arm.config, inputs)
            except UserError as error:
                raise UserError(f"arm {arm.name}: {error}") from error


def _train_group(
    arms: Sequence[Arm], plan: Plan, pool: InputsPool, ledger: ResultsStore
) -> list[dict[str, Any]]:
    """Per arm its result, or a failure, which is ``skipped`` where nothing could be read.

    Args:
        arms: What is trained at once, on the same inputs.
        plan: The study.
        pool: Where those are.
        ledger: Knows the weights of the backbones that there are results of.
    """
    try:
        inputs = distributed.call_on_all(functools.partial(pool.get, arms[0].config))
    except UserError as error:
        return [{"error": one_line(error), "skipped": True} for _ in arms]
    except Exception as error:  # but one backbone must not take the others with it
        if not distributed.is_collective(error):
            raise
        return [{"error": one_line(error)} for _ in arms]
    digest = inputs.weights_digest
    if failure := distributed.broadcast(ledger.other_weights(arms[0], digest)):
        return [failure for _ in arms]
    _leave_baselines(arms[0], ledger, inputs)
    if plan.tune is not None:
        from mtl_jax.studies.tuning.tuned import tuned

        try:
            arms = tuned(arms, inputs, ledger.folder, plan.tune, alone=ledger.alone)
        except UnsavedError:
            raise
        except UserError as error:
            return [{"error": one_line(error)} for _ in arms]
    outcomes = train_group([arm.config for arm in arms], inputs, ledger.outdone)
    return [
        {"error": each}
        if isinstance(each, str)
        else {**each, **({} if arm.tuned is None else {"tuned": arm.tuned}), WEIGHTS: digest}
        for arm, each in zip(arms, outcomes, strict=True)
    ]


def _leave_baselines(arm: Arm, ledger: ResultsStore, inputs: Inputs) -> None:
    """Leaves what an arm is held against, or says why it could not be: no arm depends on it."""
    from mtl_jax.studies.baselines import leave_baselines

    try:
        texts = texts_of(arm)
        if arm.config.data.tasks != ledger.tasks or texts in ledger.baselines:
            return
        # What fails would fail for every arm with these texts.
        ledger.baselines.add(texts)
        leave_baselines(ledger.folder, arm, inputs, alone=ledger.alone)
    except Exception as error:  # noqa: BLE001  (the arms must not be lost with them)
        say(f"note: there are no baselines: {one_line(error)}")


def train_group(
    configs: Sequence[TrainConfig],
    inputs: Inputs,
    outdone: Callable[[str, float], bool] | None = None,
) -> Sequence[dict[str, Any] | str]:
    """Per run its result, or in words what it failed with: an exception holds the arrays.

    The arguments are those of ``train_seeds``. Of several processes all have failed then: an error
    of one alone is raised, and ends them.

    Raises:
        UnsavedError: A checkpoint could not be saved: nor could those of the arms to come.
    """
    from mtl_jax.runs.loop import train_seeds

    try:
        outcomes = train_seeds(configs, inputs, outdone=outdone)
    except UnsavedError:
        raise
    except Exception as error:  # but one scenario must not take the others with it
        if not distributed.is_collective(error):
            raise
        return [one_line(error)] * len(configs)
    for each in outcomes:
        if isinstance(each, UnsavedError) and distributed.count() == 1:
            raise each
    return [one_line(each) if isinstance(each, UserError) else each for each in outcomes]
