"""A tiny random BERT on disk, four CPU devices, and a cache that the tests share."""

import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4 --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs here run for less time than they take to compile.
if os.environ.setdefault(
    "JAX_DISABLE_MOST_OPTIMIZATIONS", "1"
) == "1" and importlib.metadata.version("jaxlib").startswith("0.10."):
    # The older code generator takes less than half the time of the newer one. Later versions may
    # have no such flag, and end a process that sets one they do not know.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# The threads of scipy's and PyTorch's products wait for each other for longer than products of this
# size take, and keep the cores of two workers busy as they do.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The processes that the tests start share what has been compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "mtl-jax-xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mtl_jax.config.train import DataConfig
from mtl_jax.models.conversion import to_transformers
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.runs.record_changes import json_digest

# Some tests interrupt, or close a terminal; a shell's background job, as they may be, or what
# nohup starts is told to ignore that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Those that took longest, from the longest on: where files are dealt to workers, none of them is
# left at the end.
LONGEST = (
    "end_to_end/test_processes.py",
    "end_to_end/test_recipes.py",
    "models/test_encoder_module.py",
    "training/test_frozen_activations.py",
    "models/test_families.py",
    "training/weighting/test_step.py",
    "launch/test_slurm.py",
    "training/test_train_step.py",
    "training/test_micro_batches.py",
    "faults/test_faults.py",
    "training/test_runners.py",
    "end_to_end/test_seeds_together.py",
    "end_to_end/test_three_tasks.py",
    "end_to_end/test_kinds_of_tasks.py",
    "runs/test_loop.py",
    "tools/export/test_onnx.py",
    "tools/export/test_families.py",
    "runs/test_cached_splits.py",
    "end_to_end/test_workers.py",
    "studies/builtin/test_freezing.py",
    "runs/test_recovery.py",
    "runs/test_head_sweep.py",
    "models/test_dense_product.py",
    "tools/export/test_torch_folders.py",
    "studies/stats/test_two_way.py",
    "training/weighting/test_train.py",
    "studies/builtin/test_unfreezing.py",
    "end_to_end/test_recipes_together.py",
    "studies/tuning/test_tuning.py",
    "studies/builtin/test_scarce_task.py",
    "end_to_end/test_lora.py",
    "runs/test_flops.py",
    "runs/monitoring/test_progress_log.py",
    "training/test_compiled_step.py",
    "studies/report/test_write.py",
    "studies/builtin/test_quality.py",
    "studies/builtin/test_backbones.py",
    "runs/test_plan_recipe.py",
    "end_to_end/test_phase_contract.py",
    "runs/test_nonfinite.py",
    "runs/test_head_rate.py",
    "training/test_sharded.py",
    "end_to_end/test_processes_apart.py",
)
# How programs are compiled, on however many devices.
COMPILER_FLAGS = re.sub(
    "--xla_force_host_platform_device_count=[0-9]+", "", os.environ["XLA_FLAGS"]
)

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a an the this that film book phone tweet it is was not very "
    "good bad great awful fine dull bright i you we love hate like liked saw read . , ! ? ##s ##ed"
).split()

TASKS = ("classifier", "sentiment")


def head_sizes(*counts):
    """What a model is told of its heads: so many classes for each of ``TASKS``."""
    return tuple(zip(TASKS, counts, strict=True))


def settings_of(setting):
    """A combination of a sweep as settings of a run."""
    own = {name: value for name, value in setting.items() if not name.endswith("_weight")}
    return {**own, "task_weights": tuple(f"{task}={setting[f'{task}_weight']}" for task in TASKS)}


def weights(*values):
    """The weights of ``TASKS`` that a sweep tries."""
    return tuple(zip(TASKS, values, strict=True))


TINY = EncoderConfig(
    vocab_size=len(WORDS),
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=24,
    # Far from 0, so that the outputs depend visibly on every weight.
    initializer_range=0.3,
)


# For processes of their own, each of which traces and loads its programs.
SMALL = dataclasses.replace(TINY, num_hidden_layers=1)

# For runs: one layer to freeze and one to train.
DOUBLE = dataclasses.replace(TINY, num_hidden_layers=2)

# One whose matrix products outweigh everything else, without dropout.
WIDE = dataclasses.replace(
    TINY,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=2,
    hidden_act="relu",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def pytest_collection_modifyitems(items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    assert all(path.exists() for path in places), "LONGEST names a file that has moved"
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


def pytest_collection_finish():
    """Traces are many small objects, most of which stay: the collector looks less often."""
    gc.set_threshold(20_000, 20, 20)


def pytest_sessionfinish():
    """Garbage is looked for once: at the end pytest does so five times, in all that is kept."""
    gc.collect()
    gc.freeze()


def run_without_home(program):
    """Runs a Python program as a user that has no home folder and no entry among the users."""
    if os.geteuid() != 0:
        pytest.skip("only root may become a user without an entry")
    gone = ("HOME", "MTL_JAX_CACHE", "XDG_CACHE_HOME")
    return subprocess.run(
        [sys.executable, "-c", f"import os\n{program}"],
        env={name: value for name, value in os.environ.items() if name not in gone},
        capture_output=True,
        text=True,
        check=True,
    )


@functools.cache
def random_tensors(config, seed):
    """Of a random encoder, under transformers' names; a BERT has a pooler."""
    encoder = EncoderModule(config)

    # One program in the place of one for each operation.
    @jax.jit
    def drawn(key):
        pooler = encoder.init(key, jnp.zeros((1, config.hidden_size)), method="pool")["params"]
        pooler = pooler if config.family_table.pooler else {}
        return {**encoder.init(key, jnp.zeros((1, 4), jnp.int32))["params"], **pooler}

    return to_transformers(jax.tree.map(np.asarray, drawn(jax.random.key(seed))), config.family)


def write_checkpoint(folder, config=TINY, seed=0):
    """A random encoder and a WordPiece tokenizer, in transformers' layout."""
    fields = {"architectures": ["BertModel"], **config.to_dict()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    safetensors.numpy.save_file(random_tensors(config, seed), folder / "model.safetensors")
    return folder


def metrics_of(evaluated, metrics):
    """What ``evaluate`` has printed, but for what it adds to the metrics of a run's result."""
    return {
        task: {name: value for name, value in found.items() if name in metrics[task]}
        for task, found in json.loads(evaluated).items()
    }


def write_record(folder, record):
    """The ``config.json`` of a run's folder, with the digest that belongs to it."""
    content = {name: value for name, value in record.items() if name != "sha256"}
    signed = {**content, "sha256": json_digest(content)}
    (folder / "config.json").write_text(json.dumps(signed))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of the tiny checkpoint; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The folder of a checkpoint of one layer; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint", SMALL)


@pytest.fixture(scope="session")
def double(tmp_path_factory):
    """The folder of a checkpoint of two layers; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("double") / "checkpoint", DOUBLE)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """A CSV of 96 short texts with labels for one task or both; and 32 more twice."""
    folder = tmp_path_factory.mktemp("reviews")
    nouns, verdicts = ("film", "book", "phone"), {"good": "pos", "bad": "neg", "fine": "neu"}
    rows = []
    for i in range(160):
        noun, (word, label) = nouns[i % 3], list(verdicts.items())[i // 3 % 3]
        text = " ".join(["the", noun, "was", *["very"] * (i % 5), word, "!"][: 4 + i % 7])
        rows.append((text, noun if i % 11 else "", label if i % 7 or i % 11 == 0 else "-1"))
    files = {"train": rows[:96], "validation": rows[96:128], "test": rows[128:]}
    for name, part in files.items():
        lines = ["text,topic,mood", *(",".join(row) for row in part)]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def shared_settings(double, reviews, tmp_path_factory):
    """What ``settings`` gives, for fixtures that live longer than a test; not to be changed."""
    data = DataConfig(
        train_file=str(reviews / "train.csv"),
        validation_file=str(reviews / "validation.csv"),
        test_file=str(reviews / "test.csv"),
        label_columns=("classifier=topic", "sentiment=mood"),
    )
    return {
        "backbone": str(double),
        "data": data,
        "epochs": 2,
        "batch_size": 16,
        "backbone_learning_rate": 1e-2,
        "head_learning_rate": 1e-2,
        "parallel": "jit",
        # One at each measurement, for these runs end before a minute has passed.
        "checkpoint_minutes": 0.0,
        "cache_folder": str(tmp_path_factory.mktemp("activations")),
    }


@pytest.fixture
def settings(shared_settings):
    """Keyword arguments of a ``TrainConfig`` that trains a BERT of two layers on the reviews."""
    return dict(shared_settings)


@pytest.fixture(scope="session")
def flags(shared_settings):
    """The same as flags of ``python -m mtl_jax train``; not to be changed."""
    data = shared_settings["data"]
    return [
        f"--backbone={shared_settings['backbone']}",
        f"--train-file={data.train_file}",
        f"--validation-file={data.validation_file}",
        f"--test-file={data.test_file}",
        "--label-columns",
        *data.label_columns,
        "--epochs=2",
        "--batch-size=16",
        "--backbone-learning-rate=1e-2",
        "--head-learning-rate=1e-2",
        "--parallel=jit",
        "--checkpoint-minutes=0",
        f"--cache-folder={shared_settings['cache_folder']}",
    ]


@pytest.fixture(scope="session")
def small_settings(shared_settings, small):
    """``shared_settings`` of a backbone of one layer; not to be changed."""
    return {**shared_settings, "backbone": str(small)}


@pytest.fixture(scope="session")
def tiny_settings(shared_settings, tiny):
    """``shared_settings`` of a backbone of three layers; not to be changed."""
    return {**shared_settings, "backbone": str(tiny)}


@pytest.fixture(scope="session")
def small_flags(flags, small):
    """``flags`` of a backbone of one layer; not to be changed."""
    return [f"--backbone={small}", *flags[1:]]


@pytest.fixture
def small_disk(tmp_path):
    """Makes an empty disk of so many mebibytes, and with room for so many files."""
    with contextlib.ExitStack() as disks:

        def make(mebibytes, files=0):
            if os.geteuid() != 0:
                pytest.skip("only root may mount a small disk")
            folder = tmp_path / "disk"
            folder.mkdir()
            limits = f"size={mebibytes}m,nr_inodes={files}"
            mount = ["mount", "-t", "tmpfs", "-o", limits, "tmpfs", str(folder)]
            if subprocess.run(mount, capture_output=True, check=False).returncode:
                pytest.skip("this system allows no mount")
            disks.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
            return folder

        yield make
