"""Vectors of texts, written to a ``.npy`` or a Parquet file as they come."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from mtl_jax.core.atomic_write import atomic_write, check_place
from mtl_jax.core.errors import UserError, cannot_write
from mtl_jax.data.pairs import Pair

VECTOR_FILE = "a .npy or .parquet file"
"""What can be written."""

# Of a group of rows, which Parquet compresses and reads as one.
_GROUP_BYTES = 16 * 2**20


def check_vector_file(path: Path) -> None:
    """Refuses where ``write_vectors`` can't write, before there is anything to write.

    Raises:
        UserError: Its name ends otherwise than in .npy or .parquet, or no file can be there.
    """
    check_place(path, VECTOR_FILE)
    if path.suffix.lower() not in (".npy", ".parquet"):
        raise UserError(f"{path} can't hold vectors: name {VECTOR_FILE}")


def write_vectors(path: Path, chunks: Iterable[tuple[list[str], np.ndarray]], width: int) -> int:
    """Streams rows into a file, which appears when it is whole.

    Args:
        path: A ``.parquet`` file with the columns ``text``, a string, or of pairs ``first`` and
            ``second``, and ``vector``, a list of ``width`` float32; or a ``.npy`` file, float32
            [n, width].
        chunks: k texts, or k pairs, and float32 [k, width] each.
        width: Columns, needed where there is no row.

    Returns:
        The number of rows.

    Raises:
        UserError: As of ``check_vector_file``, or the system refuses.
    """
    check_vector_file(path)
    write = _write_parquet if path.suffix.lower() == ".parquet" else _write_npy
    try:
        with atomic_write(path) as draft:
            return write(draft, chunks, width)
    except OSError as error:
        raise cannot_write(path, error) from error


def _write_npy(draft: Path, chunks: Iterable[tuple[list[str], np.ndarray]], width: int) -> int:
    rows = 0
    with draft.open("wb") as file:
        _write_header(file, rows, width)
        for _, vectors in chunks:
            file.write(np.ascontiguousarray(vectors, "<f4").tobytes())
            rows += len(vectors)
        # numpy leaves room in the header for the first axis to grow.
        file.seek(0)
        _write_header(file, rows, width)
    return rows


def _write_header(file: IO[bytes], rows: int, width: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, header)


def _write_parquet(draft: Path, chunks: Iterable[tuple[list[str], np.ndarray]], width: int) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    chunks = iter(chunks)
    some = next(chunks, None)
    pairs = some is not None and any(isinstance(text, Pair) for text in some[0])
    names = ("first", "second") if pairs else ("text",)
    vector = pa.list_(pa.float32(), width)
    schema = pa.schema([*((name, pa.string()) for name in names), ("vector", vector)])
    rows, waiting, size = 0, [], 0
    # pyarrow takes a relative path such as s3:x/y for an address.
    with parquet.ParquetWriter(draft.absolute(), schema) as writer:
        for texts, vectors in itertools.chain([] if some is None else [some], chunks):
            flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
            columns = [texts]
            if pairs:
                columns = [[getattr(text, name, "") for text in texts] for name in names]
            arrays = [pa.array(column, pa.string()) for column in columns]
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, width))
            waiting.append(pa.record_batch(arrays, schema=schema))
            rows, size = rows + len(texts), size + waiting[-1].nbytes
            if size >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting, size = [], 0
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
    return rows
