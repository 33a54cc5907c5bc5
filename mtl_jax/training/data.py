"""The data of a research script: splits of texts with numbered labels, and their batches."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mtl_jax.config.data import DataConfig
from mtl_jax.config.tasks import Task, refuse_task_name, tasks_in_words
from mtl_jax.config.train import Settings
from mtl_jax.core.errors import UserError, require_type
from mtl_jax.core.names import listed, shown
from mtl_jax.data.batches import WHOLE, EpochOrder, HostBatch, TextSet, make_batch
from mtl_jax.data.packing.plan import Layout, PackingPlan, Placement
from mtl_jax.models.encoder import Encoder
from mtl_jax.training.inputs import Inputs, Split


@dataclasses.dataclass(frozen=True, eq=False)
class TrainBatch:
    """Which texts of the training split a step takes, and where they lie in its rows.

    Attributes:
        data: The data that they are from.
        plan: Where all texts of an epoch go.
        placement: Where those of this batch go.
    """

    data: Data
    plan: PackingPlan
    placement: Placement

    def __repr__(self) -> str:
        return f"<TrainBatch of {len(self.placement.texts)} texts>"

    def arrays(self, texts: TextSet | None = None, own: slice = WHOLE) -> HostBatch:
        """Lays the texts out.

        Args:
            texts: The training texts, with what frozen layers made of them; by default their ids.
            own: The rows that are wanted.

        Returns:
            int32 [rows, length] ``input_ids``, ``position_ids`` and ``segment_ids`` (1 ... slots
            in the order of the texts of a row, 0 is padding), and int32 [rows, slots] ``example``
            and each task's labels, negative where there is none; see ``multitask.Batch`` for
            those of other kinds.
        """
        known = self.data.train.texts if texts is None else texts
        return make_batch(known, self.plan.layout, self.placement, own)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainBatches:
    """The batches of some epochs, in the order that ``train`` has with the same seed.

    Attributes:
        data: What they are of.
        plan: Where the texts go.
        epochs: Passes over the texts.
        seed: Of their order.
    """

    data: Data
    plan: PackingPlan
    epochs: int
    seed: int

    def __repr__(self) -> str:
        return f"<TrainBatches: {self.epochs} epochs of {self.plan.steps}, seed {self.seed}>"

    def __len__(self) -> int:
        """How many batches there are."""
        return self.plan.steps * self.epochs

    def __iter__(self) -> Iterator[TrainBatch]:
        order = EpochOrder(self.plan, self.seed)
        for epoch in range(self.epochs):
            for placement in order.placements(epoch):
                yield TrainBatch(self.data, self.plan, placement)


class Data:
    """The texts and labels of some tasks, in splits, tokenised for one encoder.

        data = mtl.load_data(train="train.csv", text="text", tasks={"topic": "topic"},
                             encoder=encoder)
        for batch in data.train_batches(batch_size=32, epochs=3, seed=0):
            state, metrics = step(state, batch)

    Attributes:
        tasks: The tasks, with the names of their classes.
        encoder: The encoder whose tokenizer was used.
        inputs: The same data in the form that ``train`` uses.
    """

    def __init__(
        self,
        config: DataConfig,
        encoder: Encoder,
        weights: Mapping[str, float] | None = None,
        **settings: Any,
    ):
        """Reads the training and validation splits; the test split is read when it is first used.

        Args:
            config: Which texts and labels to read.
            encoder: The encoder.
            weights: The weights of the tasks; 1 for tasks that are not named.
            **settings: Fields of ``TrainConfig``, such as ``cache_size``.

        Raises:
            UserError: Something is wrong with the data.
        """
        self.encoder = encoder
        self._config = config
        self.inputs = Inputs(Settings(backbone=encoder.name, data=config, **settings), encoder)
        weights = weights or {}
        self.tasks = tuple(
            dataclasses.replace(task, weight=weights.get(task.name, 1.0))
            for task in self.inputs.tasks.values()
        )
        self._layout: Layout | None = None

    def __repr__(self) -> str:
        sizes = f"{len(self.train.texts)} texts to train on, {len(self.validation.texts)} to"
        return f"<Data: {sizes} validate; {tasks_in_words(self.tasks)}>"

    @property
    def train(self) -> Split:
        """The training split: ``examples`` as they were read, and ``texts`` as token ids."""
        return self._split("train")

    @property
    def validation(self) -> Split:
        """The validation split; without a validation file, a tenth of the training texts."""
        return self._split("validation")

    @property
    def test(self) -> Split:
        """The test split.

        Raises:
            UserError: There is none.
        """
        return self._split("test")

    def _split(self, name: str) -> Split:
        length = self.inputs.reader.max_length
        return dataclasses.replace(self.inputs.split(name), max_length=length, like=self._layout)

    @property
    def notes(self) -> list[str]:
        """Notes on the checkpoint and the data: classes, counts, and likely mistakes."""
        return self.inputs.notes()

    def train_batches(
        self, batch_size: int = 32, epochs: int = 1, seed: int = 0, accumulate: int = 1
    ) -> TrainBatches:
        """Returns the batches of packed texts of some epochs.

        Args:
            batch_size: Maximum number of texts in a batch; the batches of an epoch differ by at
                most one text.
            epochs: Passes over the training texts.
            seed: Seed of the order of the texts; ``train`` uses the same order for the same seed.
            accumulate: Number of micro-batches in which the step computes each batch.

        Returns:
            An iterable; its length is the number of steps.

        Raises:
            UserError: One of the numbers is below 1.
        """
        given = {"batch_size": batch_size, "epochs": epochs, "accumulate": accumulate}
        if low := [f"{name} {number}" for name, number in given.items() if number < 1]:
            raise UserError(f"{low[0]} must be at least 1")
        plan = self.plan(batch_size, accumulate)
        self._layout = plan.layout
        return TrainBatches(self, plan, epochs, seed)

    def plan(self, batch_size: int, accumulate: int = 1) -> PackingPlan:
        """Where the training texts of an epoch go, over all devices and micro-batches."""
        return self.inputs.plan(batch_size, jax.device_count() * accumulate)


def load_data(
    *,
    encoder: Encoder,
    train: str | Path | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    dataset: str = "sentences",
    text: str | Sequence[str] = "text",
    tasks: Mapping[str, str | Task] | Sequence[Task] | None = None,
    max_length: int = 128,
    **settings: Any,
) -> Data:
    """Loads the texts and labels of some tasks, from files or from a data set.

        data = mtl.load_data(train="train.csv", validation="dev.csv", text="text",
                             tasks={"topic": "topic", "stars": mtl.Task("stars", "regression")},
                             encoder=encoder)

    Args:
        encoder: From ``load_encoder``; its tokenizer is used.
        train: CSV, TSV, JSON Lines or Parquet file to train on; without one, ``dataset`` is used.
        validation: The validation file; by default a tenth of the training texts is set aside by
            hash.
        test: The test file, if there is one.
        dataset: The default corpus ``sentences``, a TFDS data set, or ``hub:NAME``.
        text: The column or feature with the texts, or two of them for pairs of texts.
        tasks: For each task the column of its labels, or a ``Task`` with its kind and weight; or
            a list of ``Task``. By default ``classifier`` and ``sentiment``, the tasks of the
            default corpus. The classes are those of the data, and a ``Task`` may have no others.
        max_length: Maximum number of tokens per text, including special tokens.
        **settings: Other fields of ``DataConfig``, such as ``label_fraction``.

    Raises:
        UserError: The data can't be found, or something is wrong with them, or a task is given
            other classes than they have.
    """
    require_type(encoder, Encoder, "encoder", "give what load_encoder returns")
    files = {"train_file": train, "validation_file": validation, "test_file": test}
    for name, file in files.items():
        if file is not None:
            require_type(file, (str, os.PathLike), name.removesuffix("_file"), _NAME_A_FILE)
    weights: dict[str, float] = {}
    classes: dict[str, tuple[str, ...]] = {}
    if tasks is not None:
        given = _as_tasks(tasks)
        settings["label_columns"] = tuple(f"{task.name}={task.column}" for task in given)
        settings["task_kinds"] = tuple(
            f"{task.name}={task.kind}" for task in given if task.kind != "single_label"
        )
        weights = {task.name: task.weight for task in given}
        classes = {task.name: task.classes for task in given}
    if not isinstance(text, str):
        settings["text_columns"], text = tuple(text), "text"
    config = DataConfig(
        dataset=dataset,
        text_column=text,
        max_length=max_length,
        **{name: str(file) for name, file in files.items() if file is not None},
        **settings,
    )
    data = Data(config.absolute(), encoder, weights)
    for task in data.tasks:
        _refuse_other_classes(task, classes.get(task.name, ()))
    return data


# Of tables in memory, too, a run has to say where they are.
_NAME_A_FILE = (
    "write it to a file and name that, such as with pandas' to_parquet, datasets' to_parquet, or "
    "a list of dicts as JSON Lines"
)


def _refuse_other_classes(task: Task, given: Sequence[str]) -> None:
    """Refuses classes in another order than a user's own loss would count them in."""
    if given and tuple(given) != task.classes:
        raise UserError(
            f"the task {task.name!r} is given the classes {listed(list(map(shown, given)), 20)}, "
            f"and the training texts have {listed(list(map(shown, task.classes)), 20)}, in this "
            "order: give these, or none"
        )


def _as_tasks(tasks: Mapping[str, str | Task] | Sequence[Task]) -> list[Task]:
    remedy = 'give the column of each task, such as {"topic": "topic"}, or a list of Task'
    require_type(tasks, (Mapping, list, tuple), "tasks", remedy)
    if not isinstance(tasks, Mapping):
        for task in tasks:
            require_type(task, Task, f"the task {task!r}", remedy)
        return list(tasks)
    found = []
    for name, task in tasks.items():
        # A pair of the settings would end the name at its first equals sign.
        refuse_task_name(name, "tasks names the task")
        require_type(task, (str, Task), f"the task {name!r}", "name its column, or give a Task")
        found.append(Task(name, column=task) if isinstance(task, str) else task)
        if found[-1].name != name:
            raise UserError(
                f"tasks has the task {found[-1].name!r} under the name {name!r}: use one name"
            )
    return found
