"""One task has few labels: what does it buy to freeze its head at first, or to train it last?

The labels of one task are thinned to 1, 3, 10, 30 and 100 %; the other tasks keep all of
theirs, or the part that ``--label-fraction`` gives them, and validation and test keep all. Each
step's loss is the sum over tasks of the mean over the labels that the step has, so that a
thin task weighs as much as a full one wherever it has a label at all. The arms:

``joint``               all heads and the backbone from the start
``scarce_head_frozen``  the scarce task's head is frozen for the first half of the epochs, all
                        losses on all the time
``scarce_head_last``    the scarce task's head is trained last: frozen at first, and its loss off
``sequential_heads``    one task after the other, the scarce one last, then all
``single_task``         the scarce task alone, without the others' labels

An epoch is a pass over the texts that have a label of a task that counts. ``single_task``
does without the other tasks' labels altogether: else the best epoch would be chosen with the
score of a head that never trains. Its texts are few where labels are scarce; it has more
passes over them, until there are ``--min-steps`` steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.kinds import has_label
from mtl_jax.studies.arm_specs import (
    NOTHING_HELD,
    check_arms,
    files_of,
    in_study,
    protocol,
    refuse_nothing_held,
)
from mtl_jax.studies.command import StudyCommand, planned
from mtl_jax.studies.settings import Arm, Plan, StudySettings, arm_folder, by_seeds

if TYPE_CHECKING:
    from mtl_jax.studies.inputs_pool import InputsPool

_SCENARIOS = {"joint": "none_frozen", "single_task": "none_frozen"}
_HEAD_FROZEN = "scarce_head_frozen"
_HEAD_FROZEN_FILE = "recipes/scarce_head_frozen.json"
# It finds the scarce task by itself: of those that are thinned, the one with the fewest labels.
_FINDING = "scarce_head_last"
# What is given by task, and left out where a task is trained alone.
_PER_TASK = ("heads", "mlp_heads", "loss", "class_weights", "label_smoothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScarceTask(StudySettings):
    """Thin one task's labels, and report what freezing its head, or the task alone, buys."""

    scarce_task: str = ""
    """the task whose training labels are thinned; by default the last"""
    fractions: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """parts of its labels that are kept"""
    arms: tuple[str, ...] = (
        "joint",
        "scarce_head_frozen",
        "scarce_head_last",
        "sequential_heads",
        "single_task",
    )
    """joint, scarce_head_frozen, single_task, and recipes, scenarios, or .json files of either"""
    epochs: int = 3
    """passes over the training examples"""
    min_steps: int = 300
    """steps of single_task at least: with few labels it has more than --epochs passes"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_empty("fractions", "arms")
        tasks = self.data.tasks
        if len(tasks) < 2:
            raise UserError("a scarce task needs another: name several with --label-columns")
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
                f"--label-fraction names {self.scarce_task}, whose labels --fractions thins: "
                f"leave it out, or give {' or '.join(self.other_tasks)} alone one"
            )
        refuse_nothing_held(self.hold_frozen_heads, self.arms)

    @property
    def other_tasks(self) -> tuple[str, ...]:
        """The tasks that keep their labels."""
        return tuple(task for task in self.data.tasks if task != self.scarce_task)

    def config(self, name: str, seed: int, fraction: float, labels: int) -> TrainConfig:
        """The run of an arm, where the scarce task has so many labels before it is thinned."""
        # All labels are a fraction, too: of tasks with as many labels it names the scarce.
        thinned = (*self.data.label_fraction, f"{self.scarce_task}={fraction:g}")
        data = self.drawn(seed, label_fraction=thinned)
        changes: dict[str, Any] = {"min_steps": 0, "head_min_steps": 0}
        if name == "single_task":
            data = data.of_task(self.scarce_task)
            steps_of_one = math.ceil(fraction * labels / self.batch_size)
            for setting in ("task_weights", *_PER_TASK):
                pairs = getattr(self, setting)
                # A value for all tasks is no pair.
                if setting == "task_weights" or any("=" in pair for pair in pairs):
                    own = [pair for pair in pairs if pair.startswith(f"{self.scarce_task}=")]
                    changes[setting] = tuple(own)
            epochs = max(self.epochs, math.ceil(self.min_steps / steps_of_one))
            changes |= self.passes(epochs)
        elif name == "sequential_heads":
            # The scarce task is the last to be trained alone.
            columns = data.columns
            columns[self.scarce_task] = columns.pop(self.scarce_task)
            pairs = tuple(f"{task}={column}" for task, column in columns.items())
            data = dataclasses.replace(data, label_columns=pairs)
        shared = {**self.of_a_run(), **changes, "data": data, **self._protocol(name)}
        workdir = arm_folder(self.workdir, name, seed, self._setting(fraction))
        return TrainConfig(**shared, workdir=workdir, seed=seed)

    def _protocol(self, name: str) -> dict[str, Any]:
        if name == _HEAD_FROZEN:
            return {"recipe": in_study(self.workdir, _HEAD_FROZEN_FILE), **NOTHING_HELD}
        return protocol(_SCENARIOS.get(name, name), self.workdir)

    def files(self) -> dict[str, Any]:
        """What the arms read in the study's folder, by its path there."""
        half = self.epochs / 2
        scenarios = (f"{self.scarce_task}_frozen", "none_frozen")
        phases = [{"scenario": scenario, "epochs": half} for scenario in scenarios]
        own = {_HEAD_FROZEN_FILE: phases} if _HEAD_FROZEN in self.arms else {}
        return own | files_of(self.arms)

    def check(self, layers: int) -> None:
        """Refuses arms that there are not for a backbone of so many layers.

        Raises:
            UserError: There is one.
        """
        own = (*_SCENARIOS, _HEAD_FROZEN)
        check_arms([arm for arm in self.arms if arm not in own], layers, self.data.tasks, own)

    def check_labels(self, labels: Mapping[str, int]) -> None:
        """Refuses arms that would take another task for the scarce one.

        Args:
            labels: Of each task, before the scarce one is thinned.

        Raises:
            UserError: There is one.
        """
        most = math.ceil(max(self.fractions) * labels[self.scarce_task])
        if _FINDING not in self.arms or not self.data.label_fraction:
            return
        for other in self.other_tasks:
            if labels[other] <= most:
                raise UserError(
                    f"--label-fraction leaves {labels[other]} {other} labels, and "
                    f"{self.scarce_task} has up to {most}: arm {_FINDING} would take {other} for "
                    "the scarce task: raise that fraction, lower --fractions, or leave "
                    f"{_FINDING} out of --arms"
                )

    def _setting(self, fraction: float) -> dict[str, Any]:
        return {"scarce_task": self.scarce_task, "fraction": fraction}

    def groups(self, labels: int) -> Iterator[list[Arm]]:
        """The arms that are trained at once: fraction by fraction, so that each is read once."""
        for fraction in sorted(self.fractions):

            def arm(name: str, seed: int, fraction: float = fraction) -> Arm:
                return Arm(name, self.config(name, seed, fraction, labels), self._setting(fraction))

            thinned = (f"{self.scarce_task}={fraction:g}",)
            at_once = self.at_once(label_fraction=thinned)
            yield from by_seeds(self.arms, self.seeds, at_once, arm)


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
    labels = {task: int(has_label(of_task).sum()) for task, of_task in examples.labels.items()}
    for task, count in labels.items():
        if not count:
            raise UserError(
                f"no training example has a {task} label: name a column for it with --label-columns"
            )
    study.check_labels(labels)
    inputs.refuse_long()
    own = {"scarce_task": study.scarce_task, "min_steps": study.min_steps}
    settings = {**study.record(), **own}
    return Plan(
        workdir=study.workdir,
        record={"study": "scarce_task", "settings": settings, **inputs.record()},
        groups=list(study.groups(labels[study.scarce_task])),
        report=leave_report,
        settings=study.described("fractions", "arms"),
        notes=[*inputs.notes(), f"the {study.scarce_task} labels are thinned"],
        files=study.files(),
        keep_checkpoints=study.keep_checkpoints,
    )


run = planned(plan_of)
main = StudyCommand(ScarceTask, __doc__ or "", run, "mtl-jax study scarce_task")
