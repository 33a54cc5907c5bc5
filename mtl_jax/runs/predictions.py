"""What a finished run predicts of every text, beside its label, as Parquet: written and read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mtl_jax.config.tasks import Kind, Task
from mtl_jax.core.atomic_write import whole
from mtl_jax.core.errors import UserError, cannot_read
from mtl_jax.data.corpus import Corpus, Examples
from mtl_jax.data.kinds import KINDS as LABELS
from mtl_jax.training.diagnosis import TaskPredictions
from mtl_jax.training.kinds.registry import KINDS

if TYPE_CHECKING:
    import pyarrow as pa


def write_predictions(
    path: Path,
    examples: Examples,
    logits: Mapping[str, np.ndarray],
    tasks: Mapping[str, Task],
    sources: Sequence[str],
) -> None:
    """Writes a row for each example, in their order, from which every metric can be computed.

    ``example`` is its row in the split of the data as they were read, ``data_set`` its data set
    where there are several, ``group`` the source that metrics are given by. Of each task there
    are ``TASK_gold`` and ``TASK_predicted``, the name of a class, a list of such, or a value in
    the unit of the labels, and ``TASK_probabilities``, one for each class. The order of the
    classes, and what each task is, stand in the metadata of the schema under ``mtl_jax``, JSON.

    Args:
        path: The file.
        examples: n examples.
        logits: Per task float32 [n, outputs].
        tasks: The tasks, by name.
        sources: The names of the data sets.

    Raises:
        UserError: It can't be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.arange(len(examples)) if examples.rows is None else examples.rows
    columns: dict[str, Any] = {"example": pa.array(rows, pa.int64())}
    if examples.sources is not None:
        columns["data_set"] = _of_few(sources, examples.sources)
    if examples.groups is not None:
        names, numbers = np.unique(examples.groups, return_inverse=True)
        columns["group"] = _of_few(names.tolist(), numbers)
    for name, task in tasks.items():
        columns |= _of_task(task, examples.labels[name], logits[name])
    about = {
        name: {"kind": task.kind, "classes": list(task.classes)} for name, task in tasks.items()
    }
    table = pa.table(columns).replace_schema_metadata({"mtl_jax": json.dumps({"tasks": about})})
    try:
        with whole(path) as draft:
            pq.write_table(table, draft, compression="zstd")
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror or error}): make room"
        ) from error


def _of_task(task: Task, labels: np.ndarray, logits: np.ndarray) -> dict[str, pa.Array]:
    import pyarrow as pa

    kind, text = KINDS[task.kind], pa.dictionary(pa.int32(), pa.string())
    types = {"single_label": text, "multi_label": pa.list_(pa.string()), "regression": pa.float64()}
    predicted = kind.predicted(logits, task.mean, task.deviation)
    columns = {
        f"{task.name}_{name}": pa.array(kind.named(values, task.classes), types[task.kind])
        for name, values in (("gold", labels), ("predicted", predicted))
    }
    probabilities = kind.probabilities(logits)
    if probabilities is not None:
        flat = pa.array(np.ravel(probabilities), pa.float32())
        columns[f"{task.name}_probabilities"] = pa.FixedSizeListArray.from_arrays(
            flat, len(task.classes)
        )
    return columns


def _of_few(names: Sequence[str], numbers: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(names))


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What one run predicts of the n texts of a split.

    Attributes:
        examples: int64 [n]: the row of each text in the split of the data as they were read.
        data_sets: str [n]: its data set; None where there is one.
        groups: str [n]: the source that metrics are given by; None where there is none.
        tasks: Per task the labels and predictions.
    """

    examples: np.ndarray
    data_sets: np.ndarray | None
    groups: np.ndarray | None
    tasks: dict[str, TaskPredictions]


def read_predictions(path: Path) -> Predictions:
    """Reads what ``write_predictions`` has written.

    Raises:
        UserError: It can't be read, or is another's file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[b"mtl_jax"])["tasks"]
        tasks = {name: _read_task(table, name, **task) for name, task in about.items()}
        groups, data_sets = (
            np.asarray(table[name].cast(pa.string()).to_pylist(), np.str_)
            if name in table.column_names
            else None
            for name in ("group", "data_set")
        )
        return Predictions(table["example"].to_numpy(), data_sets, groups, tasks)
    except OSError as error:
        raise cannot_read(path, error) from error
    except (KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"{path} holds no predictions of a run ({error}): train it again in another folder"
        ) from error


def _read_task(table: pa.Table, name: str, kind: Kind, classes: Sequence[str]) -> TaskPredictions:
    labels, predicted = (
        _numbered(table[f"{name}_{what}"], kind, classes) for what in ("gold", "predicted")
    )
    probabilities = None
    if f"{name}_probabilities" in table.column_names:
        flat = table[f"{name}_probabilities"].combine_chunks().flatten()
        probabilities = flat.to_numpy(zero_copy_only=False).reshape(table.num_rows, len(classes))
    return TaskPredictions(name, kind, tuple(classes), labels, predicted, probabilities)


def _numbered(column: pa.ChunkedArray, kind: Kind, classes: Sequence[str]) -> np.ndarray:
    """Labels as ``data.kinds`` has them, from their names."""

    def refuse(place: int, name: str) -> NoReturn:
        raise ValueError(f"row {place} has a class {name!r} that is not among its classes")

    return LABELS[kind].array(column.to_pylist(), classes, refuse)


def texts_of(
    corpus: Corpus, split: str, found: Predictions, places: Iterable[int]
) -> dict[int, str]:
    """The texts that predictions are of, by their places; without those the data no longer have.

    Args:
        corpus: The data that the run was trained on.
        split: Which split the predictions are of.
        found: The predictions.
        places: Which of them, from 0.

    Raises:
        UserError: The data can't be read.
    """
    examples = corpus.read(split)
    rows = np.arange(len(examples)) if examples.rows is None else examples.rows
    numbers = [None] * len(rows) if examples.sources is None else examples.sources.tolist()
    names = [None if number is None else corpus.sources[number] for number in numbers]
    at = {key: i for i, key in enumerate(zip(names, rows.tolist(), strict=True))}
    texts = {}
    for place in places:
        data_set = None if found.data_sets is None else str(found.data_sets[place])
        if (there := at.get((data_set, int(found.examples[place])))) is not None:
            texts[place] = str(examples.texts[there])
    return texts
