"""Whole runs of several seeds at once: the folders they leave are those of runs alone."""

import contextlib
import dataclasses
import gc
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines, rewrite_lines
from mtl_jax.data.batches import train_batches
from mtl_jax.runs.checkpoints.manager import CheckpointManager
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.run_config import identity
from mtl_jax.runs.seed_run import SeedRun
from mtl_jax.runs.workdir import Workdir
from mtl_jax.tools.predict import Predictor
from mtl_jax.training.compiled_step import shared_step
from mtl_jax.training.inputs import Inputs
from tests.conftest import TASKS, TINY, write_checkpoint, write_record
from tests.faults.runs import without_times
from tests.runs.test_loop import final_params
from tests.training.test_step import flat

# What another order of summation in float32 makes of a mean loss, and of a parameter after
# Adam has divided by the root of the second moment in each of twelve steps.
LOSS_TOLERANCE, PARAMETER_TOLERANCE = 1e-4, 5e-4

# Of these the last two are best, on validation, after the first of two epochs.
SEEDS = (1, 3, 5)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """Checkpoints of one layer, and of two, of which top_1 freezes one."""
    folder = tmp_path_factory.mktemp("shallow")
    for layers in (1, 2):
        config = dataclasses.replace(TINY, num_hidden_layers=layers)
        write_checkpoint(folder / str(layers), config)
    return folder


@pytest.fixture
def of_scenario(settings, shallow):
    def of(scenario, parallel="jit"):
        backbone = shallow / ("2" if scenario == "top_1" else "1")
        return settings | {"backbone": str(backbone), "scenario": scenario, "parallel": parallel}

    return of


@pytest.fixture(scope="module")
def inputs_of():
    loaded = {}

    def of(config):
        key = config.backbone, config.data
        if key not in loaded:
            loaded[key] = Inputs(config)
        return loaded[key]

    return of


@pytest.fixture(scope="module")
def trained(tmp_path_factory, inputs_of):
    """The folder of the seeds' runs, one by one or at once; not to be changed."""
    done = {}

    def of(settings, at_once):
        key = settings["scenario"], settings["parallel"], at_once
        if key not in done:
            done[key] = folder = tmp_path_factory.mktemp("trained")
            configs = configs_of(folder, settings)
            inputs = inputs_of(configs[0])
            results = (
                train_seeds(configs, inputs) if at_once else [train(c, inputs) for c in configs]
            )
            for seed, result in zip(SEEDS, results, strict=True):
                assert read_lines(folder / f"seed{seed}" / "metrics.jsonl")[-1] == result
        return done[key]

    return of


def configs_of(folder, settings, seeds=SEEDS):
    return [TrainConfig(**settings, workdir=str(folder / f"seed{s}"), seed=s) for s in seeds]


def assert_same_run(folder, other):
    """The two folders hold the same run but for rounding and times."""
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert [name for name in names if name != "frozen"] == [
        *(".lock", "certificate.json", "checkpoints", "config.json"),
        "metrics.jsonl",
        *(f"predictions-{split}.parquet" for split in ("test", "train", "validation")),
        *("tensorboard", "tokenizer"),
    ]
    certificates = [json.loads((f / "certificate.json").read_text()) for f in (folder, other)]
    assert certificates[0] == certificates[1] | {
        "frozen_digest_after": certificates[0]["frozen_digest_before"],
        "frozen_digest_unchanged": True,
    }
    logs = [without_times(read_lines(f / "metrics.jsonl")) for f in (folder, other)]
    assert len(logs[0]) == len(logs[1])
    for record, expected in zip(*logs, strict=True):
        assert record.keys() == expected.keys()
        for name in ("event", "step", "best_epoch", "seed", "trainable_parameters"):
            assert record.get(name) == expected.get(name)
        for split in {"train", "validation", "test"} & record.keys():
            for task in TASKS:
                found, wanted = record[split][task], expected[split][task]
                assert found["examples"] == wanted["examples"]
                assert found["loss"] == pytest.approx(wanted["loss"], rel=LOSS_TOLERANCE)
                assert found["macro_f1"] == pytest.approx(wanted["macro_f1"], abs=1e-6)
    assert_same_params(final_params(folder), final_params(other))


def assert_same_params(params, others):
    for (path, leaf), wanted in zip(flat(params).items(), flat(others).values(), strict=True):
        # The softmax takes no notice of it: its gradient is rounding, which Adam scales up.
        if not path.endswith("key/bias"):
            np.testing.assert_allclose(leaf, wanted, rtol=0, atol=PARAMETER_TOLERANCE, err_msg=path)


@pytest.mark.parametrize(
    ("scenario", "parallel"),
    [
        ("all_frozen", "jit"),
        ("backbone_frozen", "jit"),
        ("backbone_frozen", "pmap"),
        ("top_1", "jit"),
        ("top_1", "pmap"),
        ("classifier_frozen", "pmap"),
        ("none_frozen", "jit"),
    ],
)
def test_a_seed_among_others_is_the_seed_alone(scenario, parallel, of_scenario, trained):
    alone = trained(of_scenario(scenario), at_once=False)
    many = trained(of_scenario(scenario, parallel), at_once=True)
    for seed in SEEDS:
        assert_same_run(many / f"seed{seed}", alone / f"seed{seed}")
    configs, others = (
        json.loads((folder / "seed3" / "config.json").read_text()) for folder in (many, alone)
    )
    assert configs["settings"] == others["settings"]
    assert configs["environment"]["limits"]["parallel"] == parallel
    first, second, third = (
        read_lines(many / f"seed{seed}" / "metrics.jsonl")[-1] for seed in SEEDS
    )
    if scenario != "all_frozen":  # whose probe each has for itself
        assert first["train_seconds"] == second["train_seconds"] == third["train_seconds"]
    assert first["train_seconds"] > 0
    by_itself = read_lines(alone / "seed3" / "metrics.jsonl")[-1]
    assert {each["train_flops"] for each in (first, second, third)} == {by_itself["train_flops"]}


def test_a_member_can_be_put_to_use(of_scenario, trained):
    folder = trained(of_scenario("top_1"), at_once=True) / "seed3"
    result = read_lines(folder / "metrics.jsonl")[-1]
    model = Predictor(folder)
    found = model.evaluate("test")
    for task in TASKS:
        assert found[task]["loss"] == pytest.approx(result["test"][task]["loss"], abs=1e-5)
        assert found[task]["accuracy"] == result["test"][task]["accuracy"]
    assert len(list(model.predict(["the film was good"]))) == 1


def stopped(source, folder):
    """A copy of a finished run as a kill within the second epoch leaves it."""
    shutil.copytree(source, folder)
    shutil.rmtree(folder / "checkpoints" / "12")
    (folder / "certificate.json").unlink()
    log = folder / "metrics.jsonl"
    rewrite_lines(log, [record for record in read_lines(log) if record["step"] < 12])
    return folder


def test_members_resume_together_or_alone(of_scenario, trained, inputs_of, tmp_path, capsys):
    whole = trained(of_scenario("top_1"), at_once=True)
    for seed in SEEDS[1:]:
        stopped(whole / f"seed{seed}", tmp_path / f"seed{seed}")
    configs = configs_of(tmp_path, of_scenario("top_1"))
    inputs = inputs_of(configs[0])
    capsys.readouterr()
    train_seeds(configs, inputs)
    said = capsys.readouterr().err.splitlines()
    said = [line for line in said if "texts are among those of" not in line]
    assert [line for line in said if "epoch" not in line] == [
        "top_1, seed 1: 96 texts to train on, 32 to validate",
        "top_1, seeds 3, 5: 96 texts to train on, 32 to validate",
        "resuming from step 6 of 12",
    ]
    for seed in SEEDS:
        assert_same_run(tmp_path / f"seed{seed}", whole / f"seed{seed}")

    alone = dataclasses.replace(configs[1], workdir=str(tmp_path / "alone"))
    stopped(whole / "seed3", Path(alone.workdir))
    result = train(alone, inputs)
    assert_same_run(tmp_path / "alone", whole / "seed3")

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
    capsys.readouterr()
    assert train_seeds([*configs, alone], inputs)[3] == json.loads(json.dumps(result))
    assert capsys.readouterr().err.count(" is done: ") == 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")} == before


@pytest.mark.parametrize("fails", [False, True])
def test_who_has_ended_joins_no_later_group(fails, of_scenario, trained, inputs_of, tmp_path):
    """A run comes to the step at which another, whose frozen head is another, was killed."""
    whole = trained(of_scenario("classifier_frozen", "pmap"), at_once=True)
    configs = configs_of(tmp_path, of_scenario("classifier_frozen", "pmap"), SEEDS[:2])
    stopped(whole / "seed1", tmp_path / "seed1")
    if fails:
        shutil.rmtree(tmp_path / "seed1" / "checkpoints")
        (tmp_path / "seed1" / "certificate.json").mkdir()
    shutil.copytree(whole / "seed3", tmp_path / "seed3")
    (tmp_path / "seed3" / "certificate.json").unlink()
    log = tmp_path / "seed3" / "metrics.jsonl"
    rewrite_lines(log, read_lines(log)[:-1])

    ended, _ = train_seeds(configs, inputs_of(configs[0]))
    assert isinstance(ended, UserError) == fails
    for seed in SEEDS[fails:2]:
        assert_same_run(tmp_path / f"seed{seed}", whole / f"seed{seed}")


def test_a_member_that_fails_fails_alone(of_scenario, trained, inputs_of, tmp_path):
    whole = trained(of_scenario("top_1"), at_once=True)
    configs = configs_of(tmp_path, of_scenario("top_1"))
    inputs = inputs_of(configs[0])
    for seed in SEEDS[1:]:
        stopped(whole / f"seed{seed}", tmp_path / f"seed{seed}")
    blow_up(configs[2], inputs)
    (tmp_path / "seed1").mkdir()
    write_record(tmp_path / "seed1", {})
    damaged = dataclasses.replace(configs[0], seed=7, workdir=str(tmp_path / "damaged"))
    shutil.copytree(tmp_path / "seed3", damaged.workdir)
    config = json.loads((tmp_path / "seed3" / "config.json").read_text())
    config["settings"]["seed"] = 7
    write_record(tmp_path / "damaged", config)
    (tmp_path / "damaged" / "checkpoints" / "6" / "state" / "optimizer.safetensors").unlink()

    results = train_seeds([*configs, damaged], inputs)
    messages = [str(result) for result in results if isinstance(result, UserError)]
    assert len(messages) == 2
    for message, words in zip(
        messages, ("another configuration", "loss is not finite at step 7"), strict=True
    ):
        assert words in message
    # One begins anew, and so in a group of its own.
    assert isinstance(results[1], dict)
    assert isinstance(results[3], dict)
    assert_same_run(tmp_path / "seed3", whole / "seed3")
    # Nothing holds what the failed ones have computed with.
    gc.collect()
    left = [held for held in gc.get_objects() if type(held) in (PhaseRun, SeedRun)]
    folders = {getattr(held, "run", held).config.workdir for held in left}
    assert not folders & {configs[2].workdir, damaged.workdir}
    # What there was to resume from is still there.
    assert [path.name for path in (tmp_path / "seed5" / "checkpoints").iterdir()] == ["6"]
    with pytest.raises(UserError, match="loss is not finite at step 7"):
        train(configs[2], inputs)


def opened(config):
    """The checkpoints of a run, to save more of them in its name."""
    folder = Workdir(config.workdir)
    return CheckpointManager(folder.checkpoints, run=identity(folder.config()))


def blow_up(config, inputs):
    """Makes the heads in a run's last checkpoint so large that the next loss is infinite."""
    run = PhaseRun(config, inputs)
    texts = run.split("train").texts
    checkpoints = CheckpointManager(Path(config.workdir) / "checkpoints")
    data = train_batches(texts, run.plan, config.seed, 0, run.total_steps)
    params, state = checkpoints.restore(6, run.start(), run.partition)
    checkpoints.restore_data(6, data)
    progress = checkpoints.progress(6)
    checkpoints.close()
    shutil.rmtree(Path(config.workdir) / "checkpoints" / "6")
    large = jax.tree.map(lambda leaf: np.full_like(leaf, 3e38), params["classifier"]["kernel"])
    large[:, 0] *= -1
    params["classifier"]["kernel"] = large
    checkpoints = opened(config)
    checkpoints.save(params, state, data, progress, 0.5)
    checkpoints.close()


def of_other_optimizer(config, inputs):
    """Makes a run's last checkpoint one that is whole, but with the state of another scenario."""
    other = PhaseRun(dataclasses.replace(config, scenario="backbone_frozen"), inputs)
    with contextlib.closing(CheckpointManager(Path(config.workdir) / "checkpoints")) as checkpoints:
        progress, params = checkpoints.progress(6), checkpoints.restore_params(6)
    shutil.rmtree(Path(config.workdir) / "checkpoints" / "6")
    data = train_batches(other.training.texts, other.plan, config.seed, 0, other.total_steps)
    with contextlib.closing(opened(config)) as checkpoints:
        checkpoints.save(params, other.start().replace(step=np.int32(6)), data, progress, 0.5)


def test_only_who_has_begun_shares_the_time(of_scenario, trained, inputs_of, tmp_path):
    whole = trained(of_scenario("top_1"), at_once=True)
    configs = configs_of(tmp_path, of_scenario("top_1"), SEEDS[1:])
    for seed in SEEDS[1:]:
        stopped(whole / f"seed{seed}", tmp_path / f"seed{seed}")
    saved = CheckpointReader(tmp_path / "seed3" / "checkpoints")
    before = saved.progress(6)["meter"]["compile_seconds"]
    inputs = inputs_of(configs[0])
    of_other_optimizer(configs[1], inputs)
    shared_step.cache_clear()

    result, failed = train_seeds(configs, inputs)
    assert isinstance(result, dict)
    assert "checkpoints/6 has other parts than that of this run: use the versions" in str(failed)
    compiled = PhaseRun(configs[0], inputs, together=True).compiled_step().step.seconds
    assert compiled > 0
    assert result["compile_seconds"] - before == pytest.approx(compiled)


def test_no_seeds_no_results():
    assert train_seeds([]) == []


def test_only_seed_and_folder_may_differ(of_scenario, inputs_of, tmp_path):
    first, second = configs_of(tmp_path, of_scenario("top_1"), (0, 1))
    other = dataclasses.replace(second, batch_size=8)
    with pytest.raises(UserError, match="may differ in seed and workdir, but batch_size is 16 and"):
        train_seeds([first, other], inputs_of(first))
    named = dataclasses.replace(first, pooling="mean")
    with pytest.raises(UserError, match="but pooling is 'mean' and None"):
        train_seeds([named, second], inputs_of(first))
    same = dataclasses.replace(second, workdir=first.workdir)
    with pytest.raises(UserError, match="need a --workdir each"):
        train_seeds([first, same], inputs_of(first))
    assert list(tmp_path.iterdir()) == []
