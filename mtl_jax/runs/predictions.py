"""What a finished run predicts of every text, beside its label, as Parquet."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mtl_jax.config.tasks import Kind, Task
from mtl_jax.core.atomic_write import atomic_write
from mtl_jax.core.errors import UserError, cannot_read, cannot_write, first_line
from mtl_jax.core.json_files import check_json
from mtl_jax.data.examples import Examples
from mtl_jax.data.kinds import KINDS as LABEL_KINDS
from mtl_jax.training.kinds.base import Metrics
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.metrics import split_metrics

if TYPE_CHECKING:
    import pyarrow as pa

_ABOUT = {
    "type": "object",
    "required": ["tasks"],
    "properties": {
        "tasks": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["kind", "classes"],
                "properties": {
                    "kind": {"enum": list(KINDS)},
                    "classes": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
        "digits": {"type": "integer"},
    },
}
_REMEDY = "copy it there again, or name a predictions-<split>.parquet that a run has left"


@dataclasses.dataclass(frozen=True)
class TaskPredictions:
    """What one task has of n examples.

    Attributes:
        kind: Of the task.
        classes: The names of its classes; none of a regression.
        gold: The labels, as ``data.kinds`` tells: int32 [n], numbers of classes and -1 where there
            is none; int8 [n, classes]; or float64 [n].
        predicted: The predictions, likewise.
        probabilities: Of the classes, float32 [n, classes]; None of a regression.
    """

    kind: Kind
    classes: tuple[str, ...]
    gold: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a run has predicted of the n examples of a split.

        found: mtl.studies.Predictions = mtl.studies.ensemble("runs/quality", "none_frozen")
        found.tasks["sentiment"].probabilities  # float32 [n, classes]

    Attributes:
        examples: int64 [n]: the row of each in its split as the data were read.
        data_sets: str [n]: the data set of each; None where there is one.
        groups: str [n]: the source of each, that metrics are given by; None where there is none.
        tasks: Of each task what it has, in their order.
        rounded: Whether probabilities are not those of the run; see ``copy_rounded``.
    """

    examples: np.ndarray
    data_sets: np.ndarray | None
    groups: np.ndarray | None
    tasks: dict[str, TaskPredictions]
    rounded: bool = False

    def metrics(self) -> Metrics:
        """Every metric of the split but the loss, equal to the last digit to those of the run.

        Returns:
            Per task what a line of ``results.jsonl`` has of the split: ``accuracy``, ``macro_f1``,
            ``per_class``, ``ece``, ``weighted_f1_by_source``, ``examples``, and what the other
            kinds have. Not among them are the loss, which may weigh classes, and metrics of one's
            own; nor, where probabilities are rounded, ``ece``.
        """
        probabilities = {
            name: task.probabilities
            for name, task in self.tasks.items()
            if task.probabilities is not None and not self.rounded
        }
        return split_metrics(
            {name: task.gold for name, task in self.tasks.items()},
            {name: task.predicted for name, task in self.tasks.items()},
            {name: task.classes for name, task in self.tasks.items()},
            self.groups,
            probabilities,
        )


def read_predictions(path: str | Path) -> Predictions:
    """Reads the ``predictions-<split>.parquet`` of a run.

        predictions = mtl.studies.read_predictions("runs/first/predictions-test.parquet")
        predictions.tasks["sentiment"].probabilities       # float32 [n, classes]
        predictions.metrics()["sentiment"]["macro_f1"]     # as in the run's result

    Args:
        path: The file.

    Raises:
        UserError: It is missing, or is no such file.
    """
    path = Path(path)
    table, about = _read(path)
    try:
        tasks = {
            name: _read_task(table, name, each["kind"], tuple(each["classes"]))
            for name, each in about["tasks"].items()
        }
        examples = table["example"].to_numpy()
        sets, groups = (_words(table, name) for name in ("data_set", "group"))
        return Predictions(examples, sets, groups, tasks, rounded="digits" in about)
    except KeyError as error:
        raise UserError(f"{path} lacks a column ({first_line(error)}): {_REMEDY}") from error


def copy_rounded(path: Path, copy: Path, digits: int) -> None:
    """Copies the predictions of a run with fewer digits in the probabilities, in far less room.

    Labels and predictions stay what they are. The copy says that it is rounded, so that no
    calibration error is computed from it for that of the run.

    Args:
        path: ``predictions-<split>.parquet`` of a run.
        copy: The file to write.
        digits: Significant digits of each probability: of the smallest, too, for losses and
            temperatures depend on their logarithms.

    Raises:
        UserError: The one can't be read or the other can't be written.
    """
    import pyarrow as pa

    table, about = _read(path)
    for name, task in about["tasks"].items():
        column = f"{name}_probabilities"
        if column not in table.column_names:
            continue
        flat = _significant(table[column].combine_chunks().flatten().to_numpy(), digits)
        rows = pa.FixedSizeListArray.from_arrays(pa.array(flat), len(task["classes"]))
        table = table.set_column(table.column_names.index(column), column, rows)
    noted = {"mtl_jax": json.dumps({**about, "digits": digits})}
    _write(copy, table.replace_schema_metadata(noted))


def _significant(values: np.ndarray, digits: int) -> np.ndarray:
    """Rounds float [n], none of which is negative, to so many significant digits."""
    exponents = np.floor(np.log10(np.where(values > 0, values, 1.0)).astype(np.float64))
    # Of equal digits and exponents equal numbers, of which the file has each once.
    scale = 10.0**exponents
    return ((values / scale).round(digits - 1) * scale).astype(values.dtype)


def copy_with(path: Path, copy: Path, found: Predictions) -> None:
    """Copies the predictions of a run with others of the same texts in their place.

    Args:
        path: ``predictions-<split>.parquet`` of a run.
        copy: The file to write.
        found: The others, such as those of an ensemble.

    Raises:
        UserError: The one can't be read or the other can't be written.
    """
    table, _ = _read(path)
    for name, task in found.tasks.items():
        own = _columns(name, task.kind, task.classes, predicted=task.predicted)
        own |= _of_probabilities(name, task.probabilities)
        for column, values in own.items():
            table = table.set_column(table.column_names.index(column), column, values)
    _write(copy, table)


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a file, and what it says of its tasks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # As bytes: a message of pyarrow's own would not say which file it is.
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except OSError as error:
        raise cannot_read(path, error) from error
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a Parquet file ({first_line(error)}): {_REMEDY}") from error
    try:
        about = json.loads((table.schema.metadata or {})[b"mtl_jax"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} does not say what its tasks are: {_REMEDY}") from error
    check_json(about, _ABOUT, str(path), _REMEDY)
    return table, about


def _write(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    try:
        with atomic_write(path) as draft:
            # pyarrow takes a relative path such as s3:x/y for an address.
            pq.write_table(table, draft.absolute(), **_encoding(table))
    except OSError as error:
        raise cannot_write(path, error) from error


def _encoding(table: pa.Table) -> dict[str, Any]:
    """How a table takes least room, as keyword arguments of ``pyarrow.parquet.write_table``."""
    others = [field for field in table.schema if field.name != "example"]
    return {
        "compression": "zstd",
        "compression_level": 9,
        # Rising numbers, whose differences take a fraction of the room.
        "column_encoding": {"example": "DELTA_BINARY_PACKED"},
        "use_dictionary": [
            f"{field.name}.list.element" if field.type.num_fields else field.name
            for field in others
        ],
    }


def _words(table: pa.Table, name: str) -> np.ndarray | None:
    if name not in table.column_names:
        return None
    names, numbers = _numbered(table[name])
    return np.array(names)[numbers]


def _numbered(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The words of a column and int64 [n], which of them each row has; -1 where it has none."""
    import pyarrow as pa

    # Words that few rows have, or none, as a filter may have left them, are in a dictionary still.
    words = column.combine_chunks()
    if not pa.types.is_dictionary(words.type):
        words = words.dictionary_encode()
    return words.dictionary.to_pylist(), words.indices.fill_null(-1).to_numpy().astype(np.int64)


def _read_task(table: pa.Table, name: str, kind: Kind, classes: tuple[str, ...]) -> TaskPredictions:
    def read(column: str) -> np.ndarray:
        values = table[f"{name}_{column}"]
        if kind != "single_label":
            labels = [tuple(x) if isinstance(x, list) else x for x in values.to_pylist()]
            return LABEL_KINDS[kind].array(labels, classes, _unknown)
        names, numbers = _numbered(values)
        known = LABEL_KINDS[kind].array([*names, None], classes, _unknown)
        return known[numbers]

    gold, predicted = read("gold"), read("predicted")
    probabilities = None
    if classes:
        flat = table[f"{name}_probabilities"].combine_chunks().flatten()
        probabilities = flat.to_numpy().reshape(-1, len(classes))
    return TaskPredictions(kind, classes, gold, predicted, probabilities)


def _unknown(place: int, name: str) -> NoReturn:
    raise UserError(f"row {place} has the class {name!r}, which is none of its task: {_REMEDY}")


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
    noted = {"mtl_jax": json.dumps({"tasks": about})}
    _write(path, pa.table(columns).replace_schema_metadata(noted))


def _of_task(task: Task, labels: np.ndarray, logits: np.ndarray) -> dict[str, pa.Array]:
    kind = KINDS[task.kind]
    predicted = kind.predicted(logits, task.mean, task.deviation)
    columns = _columns(task.name, task.kind, task.classes, gold=labels, predicted=predicted)
    return columns | _of_probabilities(task.name, kind.probabilities(logits))


def _columns(
    name: str, kind: Kind, classes: Sequence[str], **values: np.ndarray
) -> dict[str, pa.Array]:
    """Columns of labels or predictions, each by what follows the name of the task."""
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    types = {"single_label": text, "multi_label": pa.list_(pa.string()), "regression": pa.float64()}
    return {
        f"{name}_{what}": pa.array(KINDS[kind].named(each, classes), types[kind])
        for what, each in values.items()
    }


def _of_probabilities(name: str, probabilities: np.ndarray | None) -> dict[str, pa.Array]:
    import pyarrow as pa

    if probabilities is None:
        return {}
    flat = pa.array(np.ravel(probabilities), pa.float32())
    rows = pa.FixedSizeListArray.from_arrays(flat, probabilities.shape[1])
    return {f"{name}_probabilities": rows}


def _of_few(names: Sequence[str], numbers: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(names))
