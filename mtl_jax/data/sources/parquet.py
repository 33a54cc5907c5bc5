"""The rows of a Parquet file, a few thousand in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.core.errors import UserError, first_line
from mtl_jax.data.sources.base import Rows
from mtl_jax.data.sources.values import Labels

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS, _BYTES = 4096, 2**20
_REMEDY = "write the file again, with pandas' to_parquet for example"


def read_rows(
    path: Path,
    text_column: str,
    columns: dict[str, str],
    check_columns: Callable[[list[str]], None],
) -> Iterator[Rows]:
    """Reads the text and label columns; ``Rows.places`` are row numbers, from 1.

    Args:
        path: The file.
        text_column: The column that holds the text: strings.
        columns: The label column of each task that has one: strings, whole or other numbers, or
            booleans; nulls are missing labels.
        check_columns: Is given the names of the columns, and refuses the file where one is not
            there, or is there twice.

    Raises:
        UserError: The file is damaged or no Parquet file, or a column is of another type.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path, buffer_size=_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is no whole Parquet file ({first_line(error)}): {_REMEDY}"
        ) from error
    schema = file.schema_arrow
    try:
        check_columns(schema.names)
        _check_type(path, text_column, schema, "a text", _is_text)
        for column in columns.values():
            _check_type(path, column, schema, "a label", _is_label)
    except UserError:
        file.close()
        raise
    wanted = list(dict.fromkeys((text_column, *columns.values())))
    return _rows(path, file, text_column, columns, wanted)


def _rows(
    path: Path, file: Any, text_column: str, columns: dict[str, str], wanted: list[str]
) -> Iterator[Rows]:
    import pyarrow as pa

    names = {column: Labels(column) for column in columns.values()}
    start = 1
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
            texts = values[text_column]
            if None in texts:
                row = start + texts.index(None)
                problem = f"{text_column!r} is null and not a string: put a text there"
                raise UserError(f"{path}, row {row}: {problem}")
            labels = {
                task: list(map(names[column].__getitem__, values[column]))
                for task, column in columns.items()
            }
            yield Rows(texts, labels, range(start, start + len(texts)))
            start += len(texts)


def _check_type(
    path: Path,
    column: str,
    schema: pa.Schema,
    what: str,
    fits: Callable[[pa.DataType], bool],
) -> None:
    kind = schema.field(column).type
    if not fits(kind):
        flag = "--text-column" if what == "a text" else "--label-columns"
        holds = "strings" if what == "a text" else "strings, numbers or booleans"
        raise UserError(
            f"{path}: column {column!r} holds {kind} and can't be {what}: name one of {holds} with "
            f"{flag}"
        )


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _is_label(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return _is_text(kind) or any(test(kind) for test in tests)
