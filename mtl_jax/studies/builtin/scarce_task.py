"""One task has few labels: does it help to freeze its head at first, or to train it last?

One task keeps 1, 3, 10, 30 or 100 % of its training labels. The other tasks keep all of theirs, or
the fraction that ``--label-fraction`` gives them. Validation and test keep all labels. The loss of
a step is the sum over the tasks of the mean over their labels in the step, so in every step in
which it has a label, the scarce task weighs as much as the others. The arms:

``joint``               all heads and the backbone from the start
``scarce_head_frozen``  the scarce task's head is frozen for the first half of the epochs, all
                        losses on all the time
``scarce_head_last``    the scarce task's head is trained last: frozen at first, and its loss off
``sequential_heads``    one task after the other, the scarce one last, then all
``sequential_control``  the same, but in the scarce task's own phase only its head is trained, so
                        that the other tasks can't be forgotten there
``single_task``         the scarce task alone, without the others' labels

All of these make equally many updates on labels of the scarce task: as many as ``joint``, many of
whose batches have no such label. A phase that trains the scarce task alone has one in every batch,
and makes that many steps; a phase without its loss is added on top. The number is an expectation
over the order of the texts; ``updates_by_task`` in the results has what each run made. With few
labels every arm makes more passes than ``--epochs``, until there are ``--min-steps`` such updates.

An epoch is a pass over the texts that have a label of a task whose loss is on. ``single_task`` does
without the labels of the other tasks; otherwise the best epoch would be chosen with the scores of
heads that are never trained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.kinds import has_label
from mtl_jax.studies.arm_specs import (
    NOTHING_HELD,
    check_arms,
    files_of,
    freezes_trained_head,
    in_study,
    protocol,
    refuse_nothing_held,
)
from mtl_jax.studies.command import StudyCommand, planned
from mtl_jax.studies.settings import Arm, Plan, StudySettings, arm_folder, by_seeds

if TYPE_CHECKING:
    from mtl_jax.studies.inputs_pool import InputsPool

_JOINT = "joint"
# Those that train the scarce task alone, and all that have a file of phases.
_ALONE = ("sequential_heads", "sequential_control", "single_task")
_PHASED = ("scarce_head_frozen", "scarce_head_last", *_ALONE)
_OWN = (_JOINT, *_PHASED)
# What is given by task, and left out where a task is trained alone.
_PER_TASK = ("heads", "mlp_heads", "loss", "class_weights", "label_smoothing")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Training texts by their labels, before the scarce task is thinned.

    Attributes:
        scarce: Those with a label of the scarce task.
        others: Those with a label of another task.
        alone: Those with a label of the scarce task only.
    """

    scarce: int
    others: int
    alone: int

    @classmethod
    def of(cls, labels: Mapping[str, np.ndarray], scarce: str) -> Labelled:
        """Counts them.

        Args:
            labels: Per task those of all texts.
            scarce: The scarce task.
        """
        mine = has_label(labels[scarce])
        others = np.any([has_label(each) for task, each in labels.items() if task != scarce], 0)
        return cls(int(mine.sum()), int(others.sum()), int((mine & ~others).sum()))

    def kept(self, fraction: float) -> int:
        """How many labels of the scarce task a part of them is."""
        return max(round(fraction * self.scarce), 1)

    def updates_of_pass(self, fraction: float, batch_size: int) -> float:
        """Expected batches of a pass over all texts in which the scarce task has a label.

        A batch of b of n texts has none of k with probability C(n - k, b) / C(n, b).
        """
        kept = self.kept(fraction)
        texts = self.others + round(self.alone * kept / self.scarce)
        batches = math.ceil(texts / batch_size)
        # They differ by one text at most.
        places, larger = divmod(texts, batches)

        def missed(places: int) -> float:
            return math.comb(texts - kept, places) / math.comb(texts, places)

        return batches - larger * missed(places + 1) - (batches - larger) * missed(places)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScarceTask(StudySettings):
    """Keep a fraction of one task's labels, and compare ways to train it."""

    scarce_task: str = ""
    """task of which only a fraction of the training labels is kept; by default the last"""
    fractions: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """fractions of its labels to keep"""
    arms: tuple[str, ...] = _OWN
    """joint, scarce_head_frozen, scarce_head_last, sequential_heads, sequential_control and \
single_task, which all make equally many updates on the scarce labels; recipes, scenarios, or \
.json files of either"""
    epochs: int = 3
    """passes of the arm joint over the training examples"""
    min_steps: int = 100
    """minimum number of updates on scarce labels; with few labels every arm makes more passes \
than --epochs to reach it"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_empty("fractions", "arms")
        tasks = self.data.tasks
        if len(tasks) < 2:
            raise UserError("a scarce task needs other tasks: name several with --label-columns")
        object.__setattr__(self, "scarce_task", self.scarce_task or tasks[-1])
        if self.scarce_task not in tasks:
            raise UserError(f"--scarce-task {self.scarce_task}: use {' or '.join(tasks)}")
        if self.min_steps < 0:
            raise UserError(f"--min-steps {self.min_steps} must not be negative")
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise UserError(f"--fractions {fraction} must be above 0 and at most 1")
        if self.scarce_task in self.data.label_fractions:
            raise UserError(
                f"--label-fraction names {self.scarce_task}, of whose labels "
                f"--fractions says how many are kept: name {' or '.join(self.other_tasks)} only, "
                "or leave it out"
            )
        refuse_nothing_held(self.hold_frozen_heads, self.arms)

    @property
    def other_tasks(self) -> tuple[str, ...]:
        """The tasks that keep their labels."""
        return tuple(task for task in self.data.tasks if task != self.scarce_task)

    def epochs_of(self, fraction: float, labelled: Labelled) -> int:
        """Passes of ``joint`` with a part of the labels: ``epochs``, or more; see ``min_steps``."""
        of_pass = labelled.updates_of_pass(fraction, self.batch_size)
        return max(self.epochs, math.ceil(round(self.min_steps / of_pass, 6)))

    def updates(self, fraction: float, labelled: Labelled) -> int:
        """Updates on labels of the scarce task that every arm makes with a part of them."""
        of_pass = labelled.updates_of_pass(fraction, self.batch_size)
        return round(self.epochs_of(fraction, labelled) * of_pass)

    def config(self, name: str, seed: int, fraction: float, labelled: Labelled) -> TrainConfig:
        """The run of an arm with a part of the labels."""
        # All labels are a fraction, too: of tasks with as many labels it names the scarce.
        thinned = (*self.data.label_fraction, f"{self.scarce_task}={fraction:g}")
        data = self.drawn(seed, label_fraction=thinned)
        base = self.of_a_run()
        changes: dict[str, Any] = self.passes(self.epochs_of(fraction, labelled))
        if name == "single_task":
            data = data.of_task(self.scarce_task)
            for setting in ("task_weights", *_PER_TASK):
                pairs = base[setting]
                # A value for all tasks is not a pair.
                if setting == "task_weights" or any("=" in pair for pair in pairs):
                    # One word, as of class weights, is of all tasks.
                    others = [f"{task}=" for task in self.data.tasks if task != self.scarce_task]
                    own = [pair for pair in pairs if not pair.startswith(tuple(others))]
                    changes[setting] = tuple(own)
        if name in _ALONE:
            # A pass over its few texts is a few steps.
            steps_of_pass = math.ceil(labelled.kept(fraction) / self.batch_size)
            passes = math.ceil(self.updates(fraction, labelled) / steps_of_pass)
            changes["measure_every"] = self.passes(passes)["measure_every"]
        protocol = self._protocol(name, fraction)
        shared = {**base, **changes, "data": data, **protocol}
        workdir = arm_folder(self.workdir, name, seed, self._setting(fraction))
        return TrainConfig(**shared, workdir=workdir, seed=seed)

    def _protocol(self, name: str, fraction: float) -> dict[str, Any]:
        if name in _PHASED:
            recipe = {"scenario": None, "recipe": in_study(self.workdir, _file(name, fraction))}
            return recipe if freezes_trained_head(name) else recipe | NOTHING_HELD
        return protocol("none_frozen" if name == _JOINT else name, self.workdir)

    def phases(self, name: str, fraction: float, labelled: Labelled) -> list[dict[str, Any]]:
        """The phases of an arm with a part of the labels, as a file of them has them."""
        scarce, others = self.scarce_task, self.other_tasks
        passes, updates = self.epochs_of(fraction, labelled), self.updates(fraction, labelled)

        def alone(tasks: Collection[str], **length: float) -> dict[str, Any]:
            frozen = [task for task in self.data.tasks if task not in tasks]
            scenario, off = f"{'+'.join(frozen)}_frozen", dict.fromkeys(frozen, 0.0)
            return {"scenario": scenario, **length, "task_weights": off}

        everything = {"scenario": "none_frozen", "epochs": passes / 2}
        if name == "single_task":
            return [{"scenario": "none_frozen", "steps": updates}]
        if name == "scarce_head_frozen":
            return [{"scenario": f"{scarce}_frozen", "epochs": passes / 2}, everything]
        if name == "scarce_head_last":
            return [alone(others, epochs=passes / 2), {**everything, "epochs": passes}]
        last = alone([scarce], steps=max(round(updates / 2), 1))
        if name == "sequential_control":
            last["scenario"] = [[f"{scarce}/*", "head"], ["*", "frozen"]]
        return [*(alone([task], epochs=passes / 2) for task in others), last, everything]

    def files(self, labelled: Labelled) -> dict[str, Any]:
        """What the arms read in the study's folder, by its path there."""
        own = {
            _file(name, fraction): self.phases(name, fraction, labelled)
            for name in self.arms
            for fraction in self.fractions
            if name in _PHASED
        }
        return own | files_of([arm for arm in self.arms if arm not in _OWN])

    def check(self, layers: int) -> None:
        """Refuses arms that there are not for a backbone of so many layers.

        Raises:
            UserError: There is one.
        """
        check_arms([arm for arm in self.arms if arm not in _OWN], layers, self.data.tasks, _OWN)

    def _setting(self, fraction: float) -> dict[str, Any]:
        return {"scarce_task": self.scarce_task, "fraction": fraction}

    def groups(self, labelled: Labelled) -> Iterator[list[Arm]]:
        """The arms that are trained at once: fraction by fraction, so that each is read once."""
        for fraction in sorted(self.fractions):

            def arm(name: str, seed: int, fraction: float = fraction) -> Arm:
                config = self.config(name, seed, fraction, labelled)
                return Arm(name, config, self._setting(fraction))

            thinned = (f"{self.scarce_task}={fraction:g}",)
            at_once = self.at_once(label_fraction=thinned)
            yield from by_seeds(self.arms, self.seeds, at_once, arm)


def _file(name: str, fraction: float) -> str:
    """Where in the study's folder the phases of an arm are, of a part of the labels."""
    return f"recipes/{name}-{fraction:g}.json"


def plan_of(study: ScarceTask, pool: InputsPool) -> Plan:
    """The study as data; the pool alone keeps what is read for it.

    Raises:
        UserError: The settings are wrong.
    """
    from mtl_jax.studies.report.scarce_report import leave_report

    inputs = pool.whole(study)
    study.check(inputs.bert.num_hidden_layers)
    drawn = dataclasses.replace(study, data=study.drawn(study.seeds[0]))
    examples = pool.get(drawn).corpus.read("train")
    for task, labels in examples.labels.items():
        if not has_label(labels).any():
            raise UserError(
                f"no training example has a {task} label: name a column for it with --label-columns"
            )
    labelled = Labelled.of(examples.labels, study.scarce_task)
    inputs.refuse_long()
    updates = [
        f"{study.updates(fraction, labelled):,} with {100 * fraction:g} % of them"
        for fraction in sorted(study.fractions)
    ]
    note = f"updates on {study.scarce_task} labels, of each of its own arms: {', '.join(updates)}"
    own = {"scarce_task": study.scarce_task, "min_steps": study.min_steps}
    settings = {**study.record(), **own}
    return Plan(
        workdir=study.workdir,
        record={"study": "scarce_task", "settings": settings, **inputs.record()},
        groups=list(study.groups(labelled)),
        report=leave_report,
        settings=study.described("fractions", "arms") | {"updates": note},
        notes=[*inputs.notes(), note],
        files=study.files(labelled),
        keep_checkpoints=study.keep_checkpoints,
    )


run = planned(plan_of)
main = StudyCommand(ScarceTask, __doc__ or "", run, "mtl-jax study scarce_task")
