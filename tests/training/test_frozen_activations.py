"""What the frozen bottom makes of the texts: right, found again, and all the same to training."""

import dataclasses
import functools
import hashlib
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.data.batches import TextSet
from mtl_jax.freezing import partition
from mtl_jax.freezing.partition import Stages
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.runs.checkpoints.manager import CheckpointManager
from mtl_jax.runs.loop import train
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training import frozen_activations as prefix_module
from mtl_jax.training.cache.array_store import ArrayStore
from mtl_jax.training.evaluator import Evaluator, evaluator
from mtl_jax.training.frozen_activations import SHALLOWEST, FrozenActivations
from mtl_jax.training.inputs import Inputs
from tests import forked
from tests.conftest import DOUBLE, TASKS, TINY, write_checkpoint
from tests.faults.runs import without_times

LAYERS = TINY.num_hidden_layers
DEPTHS = range(SHALLOWEST, 2 + LAYERS)
# What other shapes, and so another order of summation in float32, may make of numbers of
# the order of 1.
STATES_TOLERANCE = 1e-5


@pytest.fixture
def settings(tiny_settings):
    """Of three layers: activations are kept at several depths."""
    return dict(tiny_settings)


@pytest.fixture(scope="module")
def to_train(shared_settings, tiny_settings):
    """Settings of a run by its scenario: of no more layers than leave states to be kept."""
    return lambda scenario: dict(tiny_settings if scenario == "top_2" else shared_settings)


@pytest.fixture(scope="module")
def base(tiny_settings):
    """A ``PhaseRun`` of the tiny BERT, for its model and its texts."""
    config = TrainConfig(**tiny_settings, workdir="unused")
    return PhaseRun(config, Inputs(config))


@pytest.fixture
def prefix(base, tmp_path):
    """Makes ``FrozenActivations`` objects, by default each with an empty store."""

    def make(store=None, backbone=None, **changes):
        spec = dataclasses.replace(base._model, **changes)
        store = store or ArrayStore(2**30, Path(tempfile.mkdtemp(dir=tmp_path)))
        return FrozenActivations(
            spec, evaluator(spec), Stages(backbone or base.inputs.backbone), store
        )

    return make


@pytest.fixture
def texts(base):
    found = base.inputs.split("validation").texts
    assert len(set(found.tokens.lengths.tolist())) > 3
    return found


def flat(params) -> dict[str, Any]:
    return dict(flatten_dict(params, sep="/"))


def rows_of(texts, array):
    offsets = texts.tokens.offsets
    return [array[offsets[i] : offsets[i + 1]] for i in range(len(texts))]


@functools.partial(jax.jit, static_argnums=(1, 3))
def layers_alone(backbone, start, ids_or_states, stop):
    def layers(encoder):
        hidden = ids_or_states[None]
        if start is None:
            hidden = encoder.embed(hidden)
        views = encoder.views(jnp.ones(hidden.shape[:2], jnp.int32))
        return encoder.run_layers(hidden, views, start or 0, stop)

    return EncoderModule(TINY).apply({"params": backbone}, method=layers)


def alone(backbone, start, ids_or_states, stop):
    """The input of layer ``stop`` of one text, without any other text or padding."""
    return np.asarray(layers_alone(backbone, start, jnp.asarray(ids_or_states), stop))[0]


def assert_states(texts, found, backbone, depth, kept=None, start=None):
    """Compares with what the encoder makes of each text alone."""
    source = texts.tokens.ids if kept is None else kept
    for text, states in zip(rows_of(texts, source), rows_of(texts, found), strict=True):
        expected = alone(backbone, start, text, depth - 1)
        np.testing.assert_allclose(states, expected, rtol=0, atol=STATES_TOLERANCE)


@pytest.mark.optimized
@pytest.mark.parametrize("depth", DEPTHS)
def test_states_are_those_of_every_text_alone(depth, prefix, base, texts):
    found, seconds = prefix().states(texts, depth)
    assert found.states.shape == (len(texts.tokens.ids), TINY.hidden_size)
    assert found.states.dtype == np.float32
    assert (found.depth, found.tokens, found.pooled) == (depth, texts.tokens, None)
    assert seconds > 0
    assert_states(texts, found.states, base.inputs.backbone, depth)


@pytest.mark.optimized
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("kept", [False, True])
def test_pooled_vectors_are_those_of_every_text_alone(pooling, kept, prefix, settings, texts):
    config = TrainConfig(**settings | {"pooling": pooling}, workdir="unused")
    backbone = Inputs(config).backbone
    made = prefix(backbone=backbone, pooling=pooling)
    if kept:
        made.states(texts, 1 + LAYERS)
    found, seconds = made.pooled(texts)
    assert found.pooled.shape == (len(texts), TINY.hidden_size)
    assert found.states is None
    assert seconds > 0
    for ids, vector in zip(rows_of(texts, texts.tokens.ids), found.pooled, strict=True):
        last = alone(backbone, None, ids, LAYERS)
        expected = last.mean(0) if pooling == "mean" else last[0]
        if pooling == "pooler":
            pooler = backbone["pooler"]
            expected = np.tanh(last[0] @ pooler["kernel"] + pooler["bias"])
        np.testing.assert_allclose(vector, expected, rtol=0, atol=STATES_TOLERANCE)


@pytest.mark.optimized
def test_deeper_states_from_kept_ones_are_those_from_the_ids(prefix, texts):
    by_steps = prefix()
    for depth in DEPTHS:
        found, _ = by_steps.states(texts, depth)
        direct, _ = prefix().states(texts, depth)
        np.testing.assert_allclose(found.states, direct.states, rtol=0, atol=1e-6)
    at_once, _ = prefix().pooled(texts)
    np.testing.assert_allclose(by_steps.pooled(texts)[0].pooled, at_once.pooled, rtol=0, atol=1e-6)


def test_deeper_states_start_at_the_deepest_that_are_kept(prefix, base, texts, tmp_path):
    """Other content is put in the place of what is kept, and followed upwards."""
    store = ArrayStore(2**30, tmp_path / "files")
    made = prefix(store)
    other = {}
    for depth in (2, 3):
        states, _ = made.states(texts, depth)
        other[depth] = np.asarray(states.states) + np.float32(depth)
        content = other[depth].tobytes()
        path = tmp_path / "files" / f"{made.key(texts, depth)}.states"
        assert path.read_bytes()[:-40] == states.states.tobytes()
        content += path.read_bytes()[-40:-32]
        path.write_bytes(content + hashlib.sha256(content).digest())
    found, _ = made.states(texts, 4)
    assert_states(texts, found.states, base.inputs.backbone, 4, other[3], 2)
    clean, _ = prefix().states(texts, 4)
    assert np.abs(found.states - clean.states).max() > 0.1
    pooled, _ = made.pooled(texts)
    expected = [rows.mean(0) for rows in rows_of(texts, found.states)]
    np.testing.assert_allclose(pooled.pooled, expected, rtol=0, atol=STATES_TOLERANCE)


@pytest.mark.optimized
def test_a_boundary_that_moves_down_is_computed_from_the_ids(prefix, base, texts):
    made = prefix()
    deep, _ = made.states(texts, 3)
    before = deep.states.copy()
    found, seconds = made.states(texts, 2)
    assert (found.depth, seconds > 0) == (2, True)
    assert_states(texts, found.states, base.inputs.backbone, 2)
    assert np.abs(found.states - before).max() > 0.1
    again, _ = made.states(texts, 3)
    np.testing.assert_array_equal(again.states, before)


def test_seconds_are_those_from_the_ids_whatever_is_kept(prefix, texts, tmp_path):
    made = prefix(ArrayStore(2**30, tmp_path))
    made.states(texts, 2)
    (file,) = tmp_path.glob("*.states")
    # Far more than a pass takes, so that it is seen in what is computed from it.
    content = file.read_bytes()[:-40] + struct.pack("<d", 1000.0)
    file.write_bytes(content + hashlib.sha256(content).digest())
    assert made.states(texts, 3)[1] > 1000
    assert made.pooled(texts)[1] > made.states(texts, 3)[1]


def test_kept_states_are_not_computed_again(prefix, texts, tmp_path):
    store = ArrayStore(2**30, tmp_path)
    first, seconds = prefix(store).states(texts, 3)
    assert seconds > 0
    other = prefix(ArrayStore(2**30, tmp_path))
    found, again = other.states(texts, 3)
    assert again == seconds
    assert isinstance(found.states, np.memmap)
    assert found.states.tobytes() == first.states.tobytes()


def changed(backbone, path):
    """The parameters with the last bit of one of a leaf's numbers another one."""
    leaves = flat(backbone)
    leaf = leaves[path].copy()
    leaf.reshape(-1)[-1] = np.nextafter(leaf.reshape(-1)[-1], np.float32(9))
    return unflatten_dict({**leaves, path: leaf}, sep="/")


def test_the_key_changes_with_every_weight_below_and_with_none_above(prefix, settings, texts):
    config = TrainConfig(**settings | {"pooling": "pooler"}, workdir="unused")
    backbone = Inputs(config).backbone
    stages = ("embeddings", *(f"layer_{i}" for i in range(LAYERS)), "pooler")
    depths = (*DEPTHS, None)
    keys = {depth: prefix(backbone=backbone).key(texts, depth) for depth in depths}
    assert len(set(keys.values())) == len(depths)
    counts = dict.fromkeys(stages, 0)
    for path in flat(backbone):
        stage = path.split("/")[0]
        counts[stage] += 1
        other = prefix(backbone=changed(backbone, path))
        for depth in depths:
            below = depth is None or stages.index(stage) < depth
            assert (other.key(texts, depth) != keys[depth]) is below, (path, depth)
    assert counts == {"embeddings": 5, "layer_0": 16, "layer_1": 16, "layer_2": 16, "pooler": 2}


def test_the_key_changes_with_the_ids_and_where_a_text_ends(prefix, texts):
    made, tokens = prefix(), texts.tokens
    ids, offsets = tokens.ids.copy(), tokens.offsets.copy()
    ids[7] += 1
    offsets[1] += 1
    for depth in (2, None):
        others = [
            TextSet(dataclasses.replace(tokens, **change), texts.labels)
            for change in ({"ids": ids}, {"offsets": offsets})
        ]
        keys = {made.key(some, depth) for some in (texts, *others)}
        assert len(keys) == 3
        relabelled = TextSet(tokens, {task: texts.labels[task] * 0 for task in TASKS})
        assert made.key(relabelled, depth) == made.key(texts, depth)


@pytest.mark.parametrize(
    ("changes", "states", "pooled"),
    [
        ({"dtype": "bfloat16"}, True, True),
        ({"max_length": 16}, True, True),
        ({"parallel": "pmap"}, True, True),
        ({"bert": dataclasses.replace(TINY, layer_norm_eps=1e-6)}, True, True),
        ({"pooling": "cls"}, False, True),
        ({"classes": (7, 9)}, False, False),
    ],
    ids=str,
)
def test_the_key_changes_with_all_that_the_numbers_depend_on(
    changes, states, pooled, prefix, texts
):
    assert (prefix(**changes).key(texts, 3) != prefix().key(texts, 3)) is states
    assert (prefix(**changes).key(texts, None) != prefix().key(texts, None)) is pooled


def test_the_key_changes_with_what_the_numbers_are_computed_by(prefix, texts, monkeypatch):
    keys = {prefix().key(texts, 3)}
    with jax.default_matmul_precision("bfloat16"):
        keys.add(prefix().key(texts, 3))
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    keys.add(prefix().key(texts, 3))
    for package in ("jax", "jaxlib"):
        with monkeypatch.context() as patch:
            patch.setattr(prefix_module, "version", lambda name, p=package: f"1.{name == p}")
            keys.add(prefix().key(texts, 3))
    made = prefix()
    made._evaluator = Evaluator(made._spec)
    made._evaluator.model = made._evaluator.model.clone(fused="xla")
    keys.add(made.key(texts, 3))
    assert len(keys) == 6


def final_params(folder):
    checkpoints = CheckpointManager(Workdir(folder).checkpoints)
    assert checkpoints.last_step is not None
    params = checkpoints.restore_params(checkpoints.last_step)
    checkpoints.close()
    return flat(params)


def trained(folder, settings, **changes):
    """The log of a run without its times, and its parameters at the end, by path."""
    config = TrainConfig(**settings | changes, workdir=str(folder))
    train(config)
    return without_times(read_lines(folder / "metrics.jsonl")), final_params(folder)


@pytest.fixture(scope="module")
def once(to_train, tmp_path_factory):
    """``trained`` with kept activations in memory, once for each settings of this module."""
    known = {}

    def run(**changes):
        changes = {"pooling": "mean", "dtype": "float32"} | changes
        key = repr(sorted(changes.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("once")
            settings = to_train(changes["scenario"]) | {"cache_folder": str(folder / "files")}
            known[key] = trained(folder / "run", settings, **changes)
        return known[key]

    return run


def assert_close(found, expected, loss, parameter, ties=1):
    """Losses, metrics and parameters of two runs; so many ``ties`` may be decided otherwise."""
    (log, params), (other_log, other_params) = found, expected
    assert [record["event"] for record in log] == [record["event"] for record in other_log]
    assert [record["step"] for record in log] == [record["step"] for record in other_log]
    epochs = [(a, b) for a, b in zip(log, other_log, strict=True) if a["event"] == "epoch"]
    assert len(epochs) == 2
    for record, other in epochs:
        for task in TASKS:
            assert record["train_loss"][task] == pytest.approx(other["train_loss"][task], rel=loss)
    for split in ("train", "validation", "test"):
        for task in TASKS:
            metrics, expected_metrics = log[-1][split][task], other_log[-1][split][task]
            assert metrics["examples"] == expected_metrics["examples"]
            assert metrics["loss"] == pytest.approx(expected_metrics["loss"], rel=loss)
            few = (ties + 0.5) / metrics["examples"]
            assert metrics["accuracy"] == pytest.approx(expected_metrics["accuracy"], abs=few)
    assert params.keys() == other_params.keys()
    for path, leaf in params.items():
        # The softmax takes no notice of the keys' biases: their gradient is rounding, which
        # Adam scales up.
        if not path.endswith("key/bias"):
            np.testing.assert_allclose(
                leaf, other_params[path], rtol=0, atol=parameter, err_msg=path
            )


# After 12 steps of Adam, which divides by the root of the second moment, at a rate of 1e-2.
LOSS_TOLERANCE, PARAMETER_TOLERANCE = 1e-5, 5e-5


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("scenario", "pooling"),
    [
        ("backbone_frozen", "pooler"),
        ("top_1", "mean"),
        ("top_2", "pooler"),
    ],
)
def test_training_is_the_same_with_and_without(scenario, pooling, to_train, once):
    """With dropout: its draws must be the same, too."""
    assert TINY.hidden_dropout_prob > 0
    changes = {"scenario": scenario, "pooling": pooling}
    settings = to_train(scenario) | changes
    found = once(**changes)
    expected = once(**changes, prefix_cache=False)
    assert_close(found, expected, LOSS_TOLERANCE, PARAMETER_TOLERANCE)
    start = flat(Inputs(TrainConfig(**settings, workdir="")).backbone)
    moved = {k: np.abs(found[1][f"backbone/{k}"] - leaf).max() for k, leaf in start.items()}
    layers = len({path.split("/")[0] for path in start if path.startswith("layer_")})
    top = "" if scenario == "backbone_frozen" else f"layer_{layers - int(scenario[-1])}"
    for path, distance in moved.items():
        trains = bool(top) and path.split("/")[0] >= top
        # The tolerance is small beside what the steps change.
        assert (distance > 20 * PARAMETER_TOLERANCE) if trains else (distance == 0), path


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("scenario", "dtype"),
    [("backbone_frozen", "float32"), ("top_1", "float32"), ("top_1", "bfloat16")],
)
def test_training_from_files_is_the_same_bit_for_bit(scenario, dtype, to_train, once, tmp_path):
    changes = {"scenario": scenario, "dtype": dtype}
    settings = to_train(scenario) | changes
    folder = tmp_path / "files"
    log, params = once(**changes)
    from_files = {"cache_folder": str(folder)}
    for name in ("made", "found"):
        assert trained(tmp_path / name, settings, **from_files)[0] == log
        assert partition.digest(final_params(tmp_path / name)) == partition.digest(params)
    # Of the three splits' texts.
    assert len(list(folder.glob("*.states"))) == 3
    assert list(folder.glob(".*.part")) == []


def test_the_files_of_another_version_are_not_used(settings, tmp_path, monkeypatch):
    """The version that this package would be if it made its files in another way."""
    folder = tmp_path / "files"
    settings |= {"scenario": "top_1", "cache_folder": str(folder)}
    config = TrainConfig(**settings, workdir="unused")
    with monkeypatch.context() as patch:
        patch.setattr(prefix_module, "_VERSION", 1000 + prefix_module._VERSION)
        PhaseRun(config, Inputs(config)).split("validation")
    (other,) = folder.glob("*.states")
    # Its numbers are given another scale, and its digest follows.
    wrong = (np.frombuffer(other.read_bytes()[:-40], np.float32) * 2).tobytes()
    wrong += other.read_bytes()[-40:-32]
    other.write_bytes(wrong + hashlib.sha256(wrong).digest())

    run = PhaseRun(config, Inputs(config))
    states = run.split("validation").texts.states
    assert states is not None
    assert states.tobytes() != wrong[:-8]
    assert_states(run.inputs.split("validation").texts, states, run.inputs.backbone, 3)
    assert len(list(folder.glob("*.states"))) == 2


def test_a_budget_for_less_than_a_run_ends_in_an_error_and_for_one_run_serves_all(
    settings, tmp_path
):
    """Of two scenarios, one after the other, on the same inputs."""
    folder = tmp_path / "files"
    settings |= {"cache_folder": str(folder)}
    inputs = Inputs(TrainConfig(**settings, workdir="unused"))
    splits = ("train", "validation", "test")
    tokens = [len(inputs.split(name).texts.tokens.ids) for name in splits]
    sizes = [4 * count * TINY.hidden_size + 40 for count in tokens]

    def run(scenario):
        return PhaseRun(TrainConfig(**settings | {"scenario": scenario}, workdir="unused"), inputs)

    inputs.store.size = sum(sizes)
    shallow = [run("top_2").split(name).texts for name in splits[:1]]
    made = run("top_1")
    for name in splits:
        kept = made.split(name)
        assert made.split(name) is kept
        assert kept.texts.states is not None
        assert_states(inputs.split(name).texts, kept.texts.states, inputs.backbone, 3)
        assert sum(path.stat().st_size for path in folder.glob("*.states")) <= sum(sizes)
    # What had to make room is still right where it is in use.
    assert shallow[0].states is not None
    assert_states(inputs.split("train").texts, shallow[0].states, inputs.backbone, 2)
    assert sorted(path.stat().st_size for path in folder.glob("*.states")) == sorted(sizes)

    inputs.store.size = sum(sizes) - 1
    del made
    made = run("top_2")
    for name in splits[:2]:
        made.split(name)
    files = sorted(folder.glob("*.states"))
    with pytest.raises(UserError, match=r"^activations of .* that this run uses already exceed "):
        made.split("test")
    assert sorted(folder.glob("*.states")) == files


def test_weights_are_hashed_once(base):
    """A change that must not be made shows when they were read."""
    params = jax.tree.map(np.copy, base.inputs.backbone)
    stages = Stages(params)
    before = {stage: stages.digest(stage) for stage in params}
    for leaf in jax.tree.leaves(params):
        leaf += 1
    assert {stage: stages.digest(stage) for stage in params} == before
    for stage, known in before.items():
        assert known == Stages(base.inputs.backbone).digest(stage)
        assert known != Stages(params).digest(stage)


def test_a_damaged_file_of_a_run_is_made_again(to_train, once, tmp_path, capsys):
    folder = tmp_path / "files"
    log, params = once(scenario="top_1", dtype="float32")
    settings = to_train("top_1") | {"scenario": "top_1", "cache_folder": str(folder)}
    config = TrainConfig(**settings, workdir="unused")
    run = PhaseRun(config, Inputs(config))
    for split in ("train", "validation", "test"):
        run.split(split)
    for path in folder.glob("*.states"):
        path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    again, found = trained(tmp_path / "second", settings)
    assert capsys.readouterr().err.count("is damaged: computing it again") == 3
    assert again == log
    assert partition.digest(found) == partition.digest(params)


@pytest.mark.optimized
def test_the_states_of_half_precision_are_kept_unrounded(to_train, once):
    changes = {"scenario": "top_1", "dtype": "bfloat16"}
    settings = to_train("top_1") | changes
    config = TrainConfig(**settings, workdir="unused")
    texts = PhaseRun(config, Inputs(config)).split("train").texts
    assert texts.states is not None
    assert texts.states.dtype == np.float32
    found, expected = once(**changes), once(**changes, prefix_cache=False)
    # The factors of products have eight bits: after sums of another order some are rounded the
    # other way, and the two best logits of some of the 32 texts of a split change places.
    assert_close(found, expected, 1e-2, 4e-2, ties=3)


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory):
    config = dataclasses.replace(DOUBLE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return str(write_checkpoint(tmp_path_factory.mktemp("plain") / "checkpoint", config))


@pytest.mark.optimized
@pytest.mark.parametrize("scenario", ["backbone_frozen", "top_1"])
@pytest.mark.parametrize("kind", ["pmap", "mesh"])
def test_four_devices_with_kept_states_are_one(kind, scenario, once, without_dropout):
    """Without dropout, which every device draws for itself."""
    changes = {"scenario": scenario, "backbone": without_dropout}
    assert jax.local_device_count() == 4
    expected, found = once(**changes), once(**changes, parallel=kind)
    assert_close(found, expected, LOSS_TOLERANCE, PARAMETER_TOLERANCE)


def test_what_is_kept_follows_from_the_scenario(settings, tmp_path):
    """Kept states of the embeddings alone would cost more than they save: there are none."""
    for scenario, fields in {
        "top_3": (None, None, 0),
        "none_frozen": (None, None, 0),
        "top_1": ("states", None, 3),
        "only_1": ("states", None, 2),
        "middle_1": ("states", None, 2),
        "only_2": ("states", None, 3),
        "bias_only": (None, None, 0),
        "first_1": (None, None, 0),
        "backbone_frozen": (None, "pooled", 0),
        "all_frozen": (None, "pooled", 0),
    }.items():
        for cached in (True, False):
            changes = {"scenario": scenario, "prefix_cache": cached}
            config = TrainConfig(**settings | changes, workdir="unused")
            texts = PhaseRun(config, Inputs(config)).split("validation").texts
            found = (texts.states is not None, texts.pooled is not None, texts.depth)
            states, pooled, depth = fields if cached else (None, None, 0)
            assert found == (states is not None, pooled is not None, depth), scenario


def test_a_run_goes_on_with_other_limits_but_not_without_its_states(flags, to_train, tmp_path):
    settings = to_train("top_1")
    flags = [*flags, "--scenario=top_1", "--checkpoint-every=4", "--epochs=3"]
    command = [sys.executable, "-m", "mtl_jax", "train", *flags]
    folder = tmp_path / "killed"
    victim = forked.Popen(
        [*command, f"--workdir={folder}", f"--cache-folder={tmp_path / 'files'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # The eighth of 18 steps lies within the second epoch.
    forked.wait_until((folder / "checkpoints" / "8").exists, victim)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert Workdir(folder).result() is None
    # The test split has not been read yet.
    assert len(list((tmp_path / "files").glob("*.states"))) == 2

    settings |= {"scenario": "top_1", "checkpoint_every": 4, "epochs": 3}
    before = {path: path.read_bytes() for path in folder.glob("*.json*")}
    with pytest.raises(UserError, match=r"\(prefix_cache was True, now False\): use an"):
        trained(folder, settings, prefix_cache=False)
    assert {path: path.read_bytes() for path in folder.glob("*.json*")} == before
    other = {"cache_size": 1.0, "cache_folder": str(tmp_path / "other")}
    log, params = trained(folder, settings, **other)
    whole_log, whole_params = trained(tmp_path / "whole", settings)
    assert log == whole_log
    assert partition.digest(params) == partition.digest(whole_params)
    assert len(list((tmp_path / "other").glob("*.states"))) == 3


def test_a_cache_may_be_without_limit(settings, tmp_path):
    endless = settings | {"cache_size": float("inf")}
    store = Inputs(TrainConfig(**endless, workdir=str(tmp_path))).store
    assert store.size == sys.maxsize
    assert store.refusals(2**20) == []
