"""Trains the arms of a study group by group, and goes on with a study that was cut short.

An arm that fails takes no other with it; it is counted, and tried again at the next call. The
report on what is done so far is written again and again, and once more when the study is
interrupted; a call on a folder in which all is done writes it anew.

A study can be trained in parts, by several processes at once: each trains some of the groups,
and when all have ended one call gathers what their arms have left into the report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.config.train import TrainConfig
from mtl_jax.core import distributed, preemption
from mtl_jax.core.command_line import one_line
from mtl_jax.core.console import say
from mtl_jax.core.errors import Preempted, UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.studies.environment import circumstances
from mtl_jax.studies.inputs_pool import InputsPool
from mtl_jax.studies.results_store import BASELINES, WEIGHTS, ResultsStore, listed, opened
from mtl_jax.studies.settings import Arm, Plan, StudySettings

if TYPE_CHECKING:
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
        How many arms failed, or were skipped.

    Raises:
        UserError: The settings are wrong, the folder holds a study with others, or no arm could
            be trained.
    """
    started, pool = time.time(), InputsPool()
    plan = dataclasses.replace(plan_of(study.absolute(), pool), tune=study.budget)
    if study.list_arms:
        for line in listed(plan):
            print(line)
        return 0
    if study.chosen_part is not None:
        return train_part(plan, pool, *study.chosen_part)
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
        ledger.mend()
        reporter = _Reporter(plan, ledger, pool, command, started)
        _say_all(plan.notes)
        try:
            _train_arms(plan, ledger.waiting(plan.groups), pool, ledger, ledger.add, reporter)
        except (KeyboardInterrupt, Preempted):
            reporter.so_far()
            raise
        return reporter.end()


def train_part(plan: Plan, pool: InputsPool, part: int, parts: int) -> int:
    """Trains the groups ``part``, ``part + parts``, ... that are not done, each in its own folder.

    Other processes may train the other parts meanwhile. There is no report: see ``gather``.

    Args:
        plan: The study.
        pool: What has been read for it so far.
        part: Which part, from 0.
        parts: How many there are.

    Returns:
        How many arms failed.

    Raises:
        UserError: The folder holds another study, or a process that is no part works in it.
    """
    with opened(plan, shared=True) as ledger:
        _say_all(plan.notes)
        waiting = ledger.waiting(plan.groups[part::parts])
        _train_arms(plan, waiting, pool, ledger, ledger.leave)
        return len(ledger.failures)


def gather(plan: Plan, pool: InputsPool, command: str, started: float) -> int:
    """Writes the report on what the arms' folders hold, and trains nothing.

    Args:
        plan: The study.
        pool: What has been read for it so far.
        command: How it was called, for the report.
        started: When, in seconds since the epoch.

    Returns:
        How many arms have no result.

    Raises:
        UserError: The folder holds another study, parts of it are being trained, or none of its
            arms has a result.
    """
    with opened(plan) as ledger:
        ledger.mend()
        for group in ledger.waiting(plan.groups):
            for arm in group:
                ledger.add(arm, ledger.left(arm))
        return _Reporter(plan, ledger, pool, command, started).end()


def _say_all(notes: Sequence[str]) -> None:
    for note in notes:
        say(note)


@dataclasses.dataclass(frozen=True)
class _Reporter:
    """Writes the report of a study; the attributes are the arguments of ``conduct``."""

    plan: Plan
    ledger: ResultsStore
    pool: InputsPool
    command: str
    started: float

    def report(self) -> Path:
        ledger, plan = self.ledger, self.plan
        context: dict[str, Any] = {
            **circumstances(self.command, self.started),
            "data": self.pool.notes(),
            "seeds": list(dict.fromkeys(arm.config.seed for arm in ledger.arms)),
            "settings": dict(plan.settings),
            "baselines": read_lines(ledger.folder / BASELINES),
            "asked": dict(Counter(arm.name for arm in ledger.arms)),
        }
        if ledger.devices:
            # Other processes trained them, perhaps beside each other: times say less then.
            context["machine"] += f"; arms trained in parts, each on {' or '.join(ledger.devices)}"
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
        say(f"{count} arms in {time.time() - self.started:.0f} s; the report is {path}")
        return len(self.ledger.failures)


def _train_arms(
    plan: Plan,
    waiting: Sequence[Sequence[Arm]],
    pool: InputsPool,
    ledger: ResultsStore,
    keep: Callable[[Arm, Mapping[str, Any]], None],
    reporter: _Reporter | None = None,
) -> None:
    """Trains these groups; ``keep`` takes the outcome of each arm."""
    distributed.call_on_all(functools.partial(_refuse_impossible, waiting, pool))
    reported = time.monotonic()
    for place, todo in enumerate(waiting):
        preemption.leave_if_due(anew=True)
        pool.keep_only([group[0].config for group in waiting[place:]])
        for arm in todo:
            say(f"{ledger.place(arm)}: {arm}")
        for arm, outcome in zip(todo, _train_group(todo, plan, pool, ledger), strict=True):
            keep(arm, outcome)
        last = place + 1 == len(waiting)
        if reporter and not last and time.monotonic() - reported >= reporter.plan.report_every:
            reporter.so_far()
            reported = time.monotonic()


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
    if failed := _baselines(arms[0], ledger, inputs):
        say(f"note: {failed}")
    if plan.tune is not None:
        from mtl_jax.studies.tuning.tuned import tuned

        try:
            arms = tuned(arms, inputs, ledger.folder, plan.tune)
        except UserError as error:
            return [{"error": one_line(error)} for _ in arms]
    outcomes = train_group([arm.config for arm in arms], inputs)
    return [
        {"error": each}
        if isinstance(each, str)
        else {**each, **({} if arm.tuned is None else {"tuned": arm.tuned}), WEIGHTS: digest}
        for arm, each in zip(arms, outcomes, strict=True)
    ]


def _baselines(arm: Arm, ledger: ResultsStore, inputs: Inputs) -> str | None:
    """Leaves what an arm is held against; why it could not be, for no arm depends on it."""
    from mtl_jax.studies.baselines import leave_baselines

    if arm.config.data.tasks != ledger.tasks:
        return None
    try:
        leave_baselines(ledger.folder, arm, inputs)
    except Exception as error:  # noqa: BLE001  (the arms must not be lost with them)
        return f"there are no baselines: {one_line(error)}"
    return None


def train_group(configs: Sequence[TrainConfig], inputs: Inputs) -> Sequence[dict[str, Any] | str]:
    """Per run its result, or in words what it failed with: an exception holds the arrays.

    Of several processes all have failed then: an error of one alone is raised, and ends them.
    """
    from mtl_jax.runs.loop import train_seeds

    try:
        outcomes = train_seeds(configs, inputs)
    except Exception as error:  # but one scenario must not take the others with it
        if not distributed.is_collective(error):
            raise
        return [one_line(error)] * len(configs)
    return [one_line(each) if isinstance(each, UserError) else each for each in outcomes]
