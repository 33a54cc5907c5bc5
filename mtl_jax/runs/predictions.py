"""What a finished run predicts of every text, beside its label, as Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl_jax.config.tasks import Task
from mtl_jax.core.atomic_write import whole
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import Examples
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
