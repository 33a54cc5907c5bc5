"""Vectors in files: whole, or as they were before."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from mtl_jax.cli.commands import run
from mtl_jax.config.tasks import Task
from mtl_jax.core.atomic_write import atomic_write, check_place
from mtl_jax.core.errors import UserError
from mtl_jax.data.examples import Examples
from mtl_jax.data.pairs import Pair
from mtl_jax.runs.predictions import read_predictions, write_predictions
from mtl_jax.tools.input_texts import read_lines, read_texts
from mtl_jax.tools.vectors import VECTOR_FILE, write_vectors
from tests.limits import largest_file


def rows(count, value=1.0):
    """As many texts and vectors."""
    return [f"text {i}" for i in range(count)], np.full((count, 3), value, np.float32)


def test_vectors_stream_into_one_file(tmp_path):
    chunks = [rows(k, k) for k in (4, 1, 120)]
    path = tmp_path / "v.npy"
    assert write_vectors(path, iter(chunks), 3) == 125
    np.testing.assert_array_equal(np.load(path), np.concatenate([found for _, found in chunks]))
    assert write_vectors(path, iter([]), 3) == 0
    assert np.load(path).shape == (0, 3)


def test_a_failed_extraction_leaves_what_was_there(tmp_path):
    path = tmp_path / "v.npy"
    write_vectors(path, [rows(2)], 3)

    def failing():
        yield rows(1)
        list(read_lines(io.BytesIO(b"fine\n\xff\xfe\n")))

    with pytest.raises(UserError, match="standard input, line 2: not valid UTF-8"):
        write_vectors(path, failing(), 3)
    assert [p.name for p in tmp_path.iterdir()] == ["v.npy"]
    np.testing.assert_array_equal(np.load(path), np.ones((2, 3)))


@pytest.mark.parametrize("name", ["", ".", "/", "folder"])
def test_vectors_need_the_name_of_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"is a folder: name a \.npy or \.parquet file"):
        write_vectors(Path(name), iter([]), 3)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_vectors_go_through_a_link_and_replace_nothing_but_files(tmp_path):
    (tmp_path / "there").mkdir()
    link, pipe = tmp_path / "link.npy", tmp_path / "pipe"
    link.symlink_to("there/v.npy")
    os.mkfifo(pipe)
    for count in (2, 3):
        write_vectors(link, [rows(count)], 3)
        assert link.is_symlink()
        assert np.load(tmp_path / "there" / "v.npy").shape == (count, 3)
    (tmp_path / "device.npy").symlink_to("/dev/null")
    for path, kind in ((pipe, "a pipe"), (tmp_path / "device.npy", "a device")):
        with pytest.raises(UserError, match=f"is {kind}: name a .npy or .parquet file"):
            check_place(path, VECTOR_FILE)
        with pytest.raises(OSError, match=f"it is {kind}"), atomic_write(path) as draft:
            draft.write_text("x")
    assert pipe.is_fifo()
    loop = tmp_path / "loop.npy"
    loop.symlink_to("loop.npy")
    words = r"levels of symbolic links.*leads back to itself"
    with pytest.raises(UserError, match=words):
        check_place(loop, VECTOR_FILE)
    with pytest.raises(OSError, match=r"levels of symbolic links"), atomic_write(loop) as draft:
        draft.write_text("x")
    assert loop.is_symlink()
    assert Path("/dev/null").is_char_device()
    with pytest.raises(UserError, match="there is no folder"):
        check_place(tmp_path / "no" / "v.npy", VECTOR_FILE)


def test_output_that_can_not_be_written_is_refused_before_anything_is_read(capsys):
    assert run(["extract", "--backbone=./nowhere", "--output=/dev/null", "--input=x"]) == 2
    assert "/dev/null is a device" in capsys.readouterr().err
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["v.csv", "v.npz", "v.parquet.gz", "v"])
def test_a_name_of_another_format_is_refused(name, tmp_path, capsys):
    path = tmp_path / name
    assert run(["extract", "--backbone=./nowhere", f"--output={path}", "--input=x"]) == 2
    words = f"error: {path} can't hold vectors: name a .npy or .parquet file"
    assert capsys.readouterr().err.splitlines() == [words]
    assert not path.exists()


def test_texts_and_vectors_stream_into_a_parquet_file(tmp_path):
    path = tmp_path / "v.parquet"
    texts = ["a, b", "", "\u2028 \N{GRINNING FACE}"]
    vectors = np.arange(9, dtype=np.float32).reshape(3, 3)
    assert write_vectors(path, iter([(texts[:2], vectors[:2]), (texts[2:], vectors[2:])]), 3) == 3
    found = parquet.read_table(path)
    assert found.column_names == ["text", "vector"]
    assert found["text"].to_pylist() == texts
    assert str(found["vector"].type) == "fixed_size_list<element: float>[3]"
    np.testing.assert_array_equal(found["vector"].to_pylist(), vectors)
    assert write_vectors(path, iter([]), 3) == 0
    assert parquet.read_table(path).num_rows == 0


def test_a_folder_that_looks_like_an_address_is_a_folder(tmp_path, monkeypatch):
    """pyarrow takes what stands before a colon for the name of a file system."""
    monkeypatch.chdir(tmp_path)
    for name in ("file:x", "s3:x"):
        (tmp_path / name).mkdir()
        path = Path(name, "v.parquet")
        write_vectors(path, [(["a text"], np.zeros((1, 3), np.float32))], 3)
        assert list(read_texts(path, ["text"], [])) == ["a text"]
        examples = Examples([""], {"mood": np.zeros(1, np.int32)}, None, rows=np.arange(1))
        tasks, logits = {"mood": Task("mood", classes=("good", "bad"))}, np.zeros((1, 2), "f4")
        write_predictions(path, examples, {"mood": logits}, tasks, ("d",))
        assert read_predictions(path).tasks["mood"].predicted.shape == (1,)


@pytest.mark.parametrize("name", ["v.npy", "v.parquet"])
def test_what_the_system_refuses_is_told_in_its_words(tmp_path, name):
    path = tmp_path / name
    words = f"{path} can't be written (File too large): raise the limit on the size of a file"
    with largest_file(100), pytest.raises(UserError, match=re.escape(words)):
        write_vectors(path, [rows(200)], 3)
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_two_columns_of_a_parquet_file(tmp_path):
    pairs, vectors = [Pair("a\nb", "c"), Pair("", "d")], np.zeros((2, 3), np.float32)
    write_vectors(tmp_path / "v.parquet", [(list(pairs), vectors)], 3)
    found = parquet.read_table(tmp_path / "v.parquet").to_pydict()
    assert (found["first"], found["second"]) == (["a\nb", ""], ["c", "d"])
    assert list(found) == ["first", "second", "vector"]


def test_rows_of_a_parquet_file_do_not_wait_in_memory_for_its_end(tmp_path):
    wide = np.zeros((1024, 4096), np.float32)
    write_vectors(tmp_path / "v.parquet", (([""] * 1024, wide) for _ in range(3)), 4096)
    assert parquet.ParquetFile(tmp_path / "v.parquet").num_row_groups == 3
