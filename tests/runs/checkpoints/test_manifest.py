"""A checkpoint's manifest: no change of what it says, or of what it was put on, goes unnoticed."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.freezing import partition
from mtl_jax.runs.checkpoints import arrays, manifest
from mtl_jax.runs.checkpoints.reader import CheckpointReader, optimizer_tree
from tests.runs.checkpoints.test_manager import Run, opened, save


@pytest.fixture(scope="module")
def run():
    return Run("top_1")


@pytest.fixture
def saved_step(run, tmp_path):
    """The folder of a checkpoint."""
    with opened(tmp_path) as checkpoints:
        save(checkpoints, run, 3, 0.5)
    return tmp_path / "3"


def test_the_digest_of_parameters_is_that_of_the_freeze_contract(run):
    params, _ = run.at(1)
    assert arrays.digest(params) == partition.digest(params)


def test_the_digest_is_of_names_types_shapes_and_bytes():
    tree = {"a": np.arange(6, dtype=np.float32), "b": [np.float32(1), (np.uint32(2),)]}
    known = arrays.digest(tree)
    assert arrays.digest(dict(reversed(tree.items()))) == known
    others = [
        {**tree, "a": tree["a"].reshape(2, 3)},
        {**tree, "a": tree["a"].view(np.int32)},
        {**tree, "a": np.nextafter(tree["a"], np.float32(9))},
        {**tree, "c": np.float32(0)},
        {"a": tree["a"], "c": tree["b"]},
        {**tree, "a": np.array([-0.0, 1, 2, 3, 4, 5], np.float32)},
    ]
    assert len({known, *map(arrays.digest, others)}) == 7


def test_it_says_what_lies_beside_it(run, saved_step):
    _, state = run.at(3)
    known = manifest.read(saved_step)
    assert known.digests == {
        "params": arrays.digest(run.at(3)[0]),
        "optimizer": arrays.digest(optimizer_tree(state)),
    }
    assert known.best == (3, 0.5)
    assert known.needs == ()
    assert known.processes == 1
    assert known.progress == {"step": 3}
    names = arrays.named(optimizer_tree(state))
    assert len(names) == len(jax.tree.leaves(optimizer_tree(state)))
    assert {"step", "rng", "opt_state/moments/mu/classifier/bias"} <= names.keys()


def test_no_changed_byte_of_it_goes_unnoticed(saved_step):
    file = manifest.path(saved_step)
    whole = file.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(manifest.DamageError, match=r"/3 is damaged \(state/manifest.json "):
            manifest.read(saved_step)
    for size in range(0, len(whole) - 1, 7):
        file.write_bytes(whole[:size])
        with pytest.raises(
            manifest.DamageError, match=r"/3 is damaged \(state/manifest.json can't be read"
        ):
            manifest.read(saved_step)
    file.unlink()
    with pytest.raises(
        manifest.DamageError, match=r"state/manifest.json is missing\): run train again on"
    ):
        manifest.read(saved_step)


def test_one_of_another_version_is_refused_and_not_called_damaged(saved_step):
    file = manifest.path(saved_step)
    content = dataclasses.asdict(manifest.read(saved_step)) | {"a field to come": 1}
    content = json.loads(json.dumps(content))
    file.write_text(json.dumps({"sha256": manifest._sha256(content), "content": content}))
    words = "/3 was saved by another version of mtl_jax: use that one, or another --workdir"
    with pytest.raises(UserError, match=words) as caught:
        manifest.read(saved_step)
    assert not isinstance(caught.value, manifest.DamageError)
    # Before there were manifests.
    (saved_step / "state").rename(saved_step / "progress")
    with pytest.raises(UserError, match=words):
        CheckpointReader(saved_step.parent).progress(3)
