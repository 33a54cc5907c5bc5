"""A checkpoint has what trains; the pre-trained encoder stands beside it, once."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.models.tokenizer_files import tokenizer_digest
from mtl_jax.runs.checkpoints import arrays, frozen_leaves
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.loop import train
from mtl_jax.runs.workdir import SHARED
from mtl_jax.studies import study
from mtl_jax.tools.predict import Predictor
from mtl_jax.training.inputs import Inputs

MEMORY = Path("/dev/shm")  # noqa: S108  (another file system, where there is one)


@pytest.fixture(scope="module")
def inputs(shared_settings):
    return Inputs(TrainConfig(**shared_settings, workdir=""))


@pytest.fixture(scope="module")
def trained(shared_settings, inputs, tmp_path_factory):
    """A folder in which heads have been trained; not to be changed."""
    folder = tmp_path_factory.mktemp("heads") / "run"
    train(TrainConfig(**shared_settings, workdir=str(folder)), inputs)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def leaves_of(folder, step):
    return arrays.read(folder / "checkpoints" / str(step) / "state" / "params.safetensors")


def last_of(folder):
    return CheckpointReader(folder / "checkpoints").last_step or 0


def frozen_of(folder):
    return sorted((folder / "frozen").glob("*.safetensors"))


def test_heads_alone_are_all_that_a_checkpoint_of_them_has(trained, inputs):
    (file,) = frozen_of(trained)
    assert file.stem == inputs.weights_digest
    step = last_of(trained)
    assert {name.split("/")[0] for name in leaves_of(trained, step)} == {"classifier", "sentiment"}
    found = flatten_dict(CheckpointReader(trained / "checkpoints").restore_params(step), sep="/")
    expected = flatten_dict({"backbone": inputs.backbone}, sep="/")
    assert found.keys() > expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf)
    folder = trained / "checkpoints" / str(step)
    assert len([folder, *folder.rglob("*")]) <= 12


def test_whoever_may_read_new_files_may_read_those_of_a_run(trained, tmp_path):
    new = tmp_path / "new"
    new.touch()
    files = [path for path in trained.rglob("*") if path.is_file()]
    readable = new.stat().st_mode & 0o444
    assert {path: path.stat().st_mode & 0o444 for path in files} == dict.fromkeys(files, readable)


def test_what_every_phase_trains_needs_no_encoder_beside_it(shared_settings, inputs, tmp_path):
    folder = tmp_path / "run"
    train(TrainConfig(**shared_settings, scenario="none_frozen", workdir=str(folder)), inputs)
    assert frozen_of(folder) == []
    assert any(name.startswith("backbone/") for name in leaves_of(folder, last_of(folder)))


def test_what_an_earlier_phase_has_trained_is_in_the_checkpoints_of_a_later_one(
    shared_settings, inputs, tmp_path
):
    recipe = tmp_path / "recipe.json"
    phases = [{"scenario": name, "epochs": 1} for name in ("top_1", "backbone_frozen")]
    recipe.write_text(json.dumps(phases))
    folder = tmp_path / "run"
    train(TrainConfig(**shared_settings, recipe=str(recipe), workdir=str(folder)), inputs)
    there = CheckpointReader(folder / "checkpoints").steps
    first, last = (leaves_of(folder, step) for step in there)
    stages = {"/".join(name.split("/")[:2]) for name in last if name.startswith("backbone/")}
    # What pools the tokens is on top of the layers.
    assert stages - {"backbone/pooler"} == {"backbone/layer_1"}
    for name in last:
        if name.startswith("backbone/"):
            np.testing.assert_array_equal(first[name], last[name])


def test_a_folder_is_complete_by_itself(run, trained, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = run.rename(tmp_path / "elsewhere" / "mine")
    texts = ["the film was good", "a dull book"]
    assert Predictor(moved).predict(texts) == Predictor(trained).predict(texts)


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_an_encoder_that_is_damaged_is_told_and_made_again(
    damage, run, trained, inputs, capsys, shared_settings
):
    (file,) = frozen_of(run)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped" else content[:-1])
    words = r"frozen/\w+.safetensors is missing or damaged, without which"
    with pytest.raises(UserError, match=words):
        Predictor(run)
    # As a run that was killed before its end.
    log = run / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    capsys.readouterr()
    train(TrainConfig(**shared_settings, workdir=str(run)), inputs)
    said = capsys.readouterr().err
    assert (f"{file} was damaged: it is recreated" in said) is (damage != "removed")
    assert file.read_bytes() == frozen_of(trained)[0].read_bytes()


def test_the_arms_of_a_study_share_its_bytes(shared_settings, flags, tmp_path):
    arms = {"heads": {"scenario": "backbone_frozen"}, "top": {"scenario": "top_1"}}
    main = study(arms, "Which?")
    words = [*flags, "--seeds", "0", "--epochs=1"]
    assert main([*words, f"--workdir={tmp_path / 'kept'}", "--keep-checkpoints"]) == 0
    files = sorted((tmp_path / "kept" / "arms").glob("*/frozen/*.safetensors"))
    assert len(files) == 2
    assert len({file.stat().st_ino for file in files}) == 1
    # Of each, the best parameters suffice.
    assert not [*tmp_path.glob("kept/arms/*/checkpoints/*/state/optimizer.safetensors")]
    # And those of the tokenizer, which every run has whole.
    own = [
        sorted(arm.iterdir()) for arm in sorted((tmp_path / "kept" / "arms").glob("*/tokenizer"))
    ]
    assert [[file.name for file in each] for each in own] == [[f.name for f in own[0]]] * 2
    assert all(a.samefile(b) for a, b in zip(*own, strict=True))
    assert main([*words, f"--workdir={tmp_path / 'not'}"]) == 0
    (one, other) = sorted((tmp_path / "not" / "arms").glob("*/tokenizer"))
    assert not (tmp_path / "not" / ".frozen").exists()
    assert tokenizer_digest(one) == tokenizer_digest(other)
    # The model of the best arm alone is kept.
    arms_of_it = tmp_path / "not" / "arms"
    kept = {path.relative_to(arms_of_it).parts[0] for path in arms_of_it.rglob("*.safetensors")}
    assert len(kept) == 1


@pytest.mark.skipif(
    not MEMORY.is_dir() or MEMORY.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev,
    reason="needs two file systems, between which there is no hard link",
)
def test_where_there_is_no_hard_link_to_the_studys_file_a_run_has_a_copy(tmp_path):
    shared, arm = tmp_path / SHARED, tmp_path / "arms" / "heads"
    shared.mkdir()
    arm.mkdir(parents=True)
    params = {"layer_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    digest = arrays.digest(flatten_dict(params, sep="/"))
    with tempfile.TemporaryDirectory(dir=MEMORY) as elsewhere:
        (arm / "frozen").symlink_to(elsewhere)
        frozen_leaves.keep(arm / "frozen", params, digest)
        (source,), (copy,) = (sorted(place.iterdir()) for place in (shared, arm / "frozen"))
        assert copy.stat().st_dev != source.stat().st_dev
        assert copy.read_bytes() == source.read_bytes()
        found = frozen_leaves.read(arm / "frozen", digest)
    np.testing.assert_array_equal(found["layer_0/kernel"], params["layer_0"]["kernel"])
