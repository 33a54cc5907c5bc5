"""The rows of a Parquet file, a few thousand in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.core.errors import UserError, first_line
from mtl_jax.data.columns import Label
from mtl_jax.data.kinds import LabelKind
from mtl_jax.data.soft_labels import Distribution
from mtl_jax.data.sources.base import Fields, Rows
from mtl_jax.data.sources.values import Labels, UnusableError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS, _BYTES = 4096, 2**20
_REMEDY = "write the file again, with pandas' to_parquet for example"


def read_rows(path: Path, fields: Fields) -> Iterator[Rows]:
    """Reads the text and label columns; ``Rows.places`` are row numbers, from 1.

    Args:
        path: The file.
        fields: The columns of the texts, which hold strings, and of the labels, which hold what
            the kind of their task can read; nulls are missing labels.

    Raises:
        UserError: The file is damaged or no Parquet file, or a column is not there, there twice,
            or of another type.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # pyarrow takes a relative path such as s3:x/y for an address.
        file = parquet.ParquetFile(path.absolute(), buffer_size=_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is not a complete Parquet file ({first_line(error)}): {_REMEDY}"
        ) from error
    schema = file.schema_arrow
    try:
        fields.check(path, schema.names)
        for column in fields.texts:
            if not _is_text(kind := schema.field(column).type):
                raise UserError(
                    f"{path}: column {column!r} holds {kind} and can't be a text: name one of "
                    f"strings with {fields.text_flag}"
                )
        for task, column in fields.labels.items():
            if not _is_label(kind := schema.field(column).type, fields.kinds[task]):
                raise UserError(
                    f"{path}: column {column!r} holds {kind} and can't be a label: name one of "
                    f"{fields.kinds[task].values} with --label-columns"
                )
    except UserError:
        file.close()
        raise
    return _rows(path, file, fields)


def _rows(path: Path, file: Any, fields: Fields) -> Iterator[Rows]:
    import pyarrow as pa

    names = {task: Labels(column, fields.kinds[task]) for task, column in fields.labels.items()}
    wanted, start = list(fields.columns), 1
    with file:
        batches = file.iter_batches(batch_size=_ROWS, columns=wanted)
        while True:
            try:
                batch = next(batches, None)
                # A damaged page can hold bytes that are no UTF-8.
                values = {} if batch is None else {c: batch[c].to_pylist() for c in wanted}
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{path}, row {start} or after: the file is damaged ({first_line(error)}): "
                    f"{_REMEDY}"
                ) from error
            if batch is None:
                return
            texts = [values[column] for column in fields.texts]
            for column, of_column in zip(fields.texts, texts, strict=True):
                if None in of_column:
                    row = start + of_column.index(None)
                    problem = f"{column!r} is null and not a string: put a text there"
                    raise UserError(f"{path}, row {row}: {problem}")
            labels: dict[str, Sequence[Label]] = {}
            for task, column in fields.labels.items():
                try:
                    labels[task] = names[task].of(values[column])
                except UnusableError as error:
                    raise UserError(f"{path}, row {start + error.index}: {error}") from error
            places = range(start, start + len(texts[0]))
            yield Rows(fields.joined(texts), labels, places)
            start = places.stop


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _is_label(kind: pa.DataType, of_task: LabelKind) -> bool:
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if of_task.lists and any(test(kind) for test in lists):
        kind = kind.value_type
    if isinstance(of_task, Distribution) and pa.types.is_struct(kind):
        return all(_is_label(field.type, of_task) for field in kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = [pa.types.is_integer, pa.types.is_floating, pa.types.is_null]
    tests.append(pa.types.is_boolean if of_task.booleans else pa.types.is_decimal)
    return _is_text(kind) or any(test(kind) for test in tests)
