"""The file of a kept batch: what is written is read, and what is damaged is told."""

import dataclasses
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.data.tokens import Tokens
from mtl_jax.runs.kept_batch import KeptBatch, newest_batch, read_batch, write_batch


def kept(texts=("the ünusual", "film\n"), parts=None, step=7):
    random = np.random.default_rng(0)
    rows = len(texts)
    return KeptBatch(
        step=step,
        task="sentiment",
        seed=2**32 - 1,
        phase=1,
        depth=2,
        blocks=((1, 8), (4, 2)),
        parts=parts,
        texts=tuple(texts),
        tokens=Tokens(np.arange(3 * rows, dtype=np.int32), np.arange(rows + 1) * 3, 0, 0),
        batch={
            "example": np.arange(rows, dtype=np.int32)[:, None],
            "states": np.asarray(jnp.asarray(random.normal(size=(rows, 16, 4)), jnp.bfloat16)),
            "hold": np.array([[np.nan]] * rows, np.float32),
        },
    )


def assert_same(found, expected):
    for field in dataclasses.fields(KeptBatch):
        if field.name not in ("batch", "tokens"):
            assert getattr(found, field.name) == getattr(expected, field.name)
    np.testing.assert_array_equal(found.tokens.ids, expected.tokens.ids)
    np.testing.assert_array_equal(found.tokens.offsets, expected.tokens.offsets)
    assert found.batch.keys() == expected.batch.keys()
    for name, array in expected.batch.items():
        assert found.batch[name].dtype == array.dtype
        np.testing.assert_array_equal(found.batch[name], array)


def test_what_is_written_is_read(tmp_path):
    path = write_batch(tmp_path / "new", kept())
    assert path == tmp_path / "new" / "step_7.npz"
    assert [file.name for file in path.parent.iterdir()] == ["step_7.npz"]
    assert_same(read_batch(path), kept())


def test_the_rows_of_several_processes_are_put_together(tmp_path):
    names = ("a", "b", "c", "d")
    first, second = (kept(names[i : i + 2], parts=4) for i in (0, 2))
    second.batch["example"][:] += 2
    second.tokens.ids[:] += 6
    paths = [write_batch(tmp_path, part, i, 2) for i, part in enumerate((first, second))]
    assert [path.name for path in paths] == [f"step_7_process_{i}_of_2.npz" for i in range(2)]
    whole = kept(names, parts=4)
    for name in ("states", "hold"):
        whole.batch[name] = np.concatenate([first.batch[name], second.batch[name]])
    for path in paths:
        assert_same(read_batch(path), whole)
    paths[0].unlink()
    with pytest.raises(UserError, match=r"step_7_process_0_of_2\.npz is not there"):
        read_batch(paths[1])


def test_the_newest_is_that_which_was_written_last(tmp_path):
    assert newest_batch(tmp_path) is None
    first, second = (write_batch(tmp_path, kept(step=step)) for step in (20, 3))
    (tmp_path / "step_4.npz.copy").write_bytes(b"")
    os.utime(first, ns=(1, 1))
    assert newest_batch(tmp_path) == second
    os.utime(second, ns=(0, 0))
    assert newest_batch(tmp_path) == first


@pytest.mark.parametrize("part", [0, 100, 1000, -1])
def test_a_damaged_file_is_told(part, tmp_path):
    path = write_batch(tmp_path, kept())
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(UserError, match=r"step_7\.npz is no batch that a run has kept, or damaged"):
        read_batch(path)


def test_another_file_is_told(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.save(tmp_path / "other.npy", np.zeros(3))
    for name in ("other.npz", "other.npy"):
        with pytest.raises(UserError, match=f"{name} is no batch that a run has kept"):
            read_batch(tmp_path / name)
    with pytest.raises(UserError, match="nowhere is not there"):
        read_batch(tmp_path / "nowhere")


@pytest.mark.parametrize("about", [[], "x", {}, None, {"dtypes": 3}])
def test_json_of_another_shape_in_it_is_told(about, tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, about=np.array(json.dumps(about)))
    with pytest.raises(UserError, match=r"other\.npz: .*: name another$"):
        read_batch(path)
