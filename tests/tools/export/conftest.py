"""One trained run that all tests of exporting share."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

import mtl_jax as mtl
from mtl_jax.config.train import TrainConfig
from mtl_jax.models.conversion import to_transformers
from mtl_jax.models.exported import classifier_tensors
from mtl_jax.models.pretrained import load_backbone
from mtl_jax.runs.loop import train
from mtl_jax.tools.export.trained_run import TrainedRun
from mtl_jax.training.evaluator import ModelSpec

EXPORT_PAGE = Path(__file__).parents[3] / "docs" / "export.md"
TEXTS = ["the film was good !", "", "a book", "we liked the phone very much . " * 5]
PAIRS = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))


@pytest.fixture(scope="session")
def trained(small_settings, tmp_path_factory):
    """The folder of a run of two tasks; not to be changed."""
    folder = tmp_path_factory.mktemp("export") / "run"
    train(TrainConfig(**{**small_settings, "epochs": 1}, workdir=str(folder), scenario="top_1"))
    return folder


@pytest.fixture(scope="session")
def opened(trained):
    return TrainedRun.open(trained)


@pytest.fixture(scope="session")
def pooled_by(opened, small):
    """The run as it would be with another pooling, by name."""
    pooler = load_backbone(small)[1]["pooler"]
    backbone = {"pooler": {**opened.backbone, "pooler": pooler}}
    return {
        pooling: dataclasses.replace(
            opened, pooling=pooling, backbone=backbone.get(pooling, opened.backbone)
        )
        for pooling in ("mean", "cls", "pooler")
    }


def of_pairs(run):
    """The run as it would be on pairs of texts."""
    data = {**run.record["settings"]["data"], "text_columns": ["premise", "hypothesis"]}
    settings = {**run.record["settings"], "data": data}
    return dataclasses.replace(run, record={**run.record, "settings": settings})


def expected_logits(run, texts=TEXTS):
    """What the model itself makes of texts: per task float32 [texts, outputs]."""
    vectors = expected_vectors(run, texts)
    return {head.name: vectors @ head.params["kernel"] + head.params["bias"] for head in run.heads}


@functools.partial(jax.jit, static_argnums=0)
def _pooled(module, params, batch):
    return module.apply(params, batch, method="pooled")


def expected_vectors(run, texts):
    """The pooled vectors of texts or pairs, each by itself: float32 [texts, hidden]."""
    spec = ModelSpec(run.config, (("x", 1),), run.pooling, "float32", run.max_length)
    module, found = spec.model(), []
    for text in texts:
        # A list of one: beside a text by itself an empty second one counts as none.
        words = [[each] for each in ([text] if isinstance(text, str) else text)]
        how = {"max_length": run.max_length, "return_token_type_ids": True}
        encoded = run.tokenizer(*words, truncation="longest_first", **how)
        ids = encoded["input_ids"][0]
        batch = {
            "input_ids": np.array([ids]),
            "segment_ids": np.ones((1, len(ids)), np.int32),
            "position_ids": np.arange(len(ids))[None],
            "x": np.full((1, 1), -1),
        }
        if run.token_types:
            batch["token_type_ids"] = np.array(encoded["token_type_ids"])
        params = {"params": {"backbone": run.backbone}}
        found.append(np.asarray(_pooled(module, params, batch))[0, 0])
    return np.stack(found)


def run_in_torch(root, jobs):
    """What a process with PyTorch makes of exported folders.

    A process of its own, for this one may have loaded transformers without it.

    Args:
        root: A folder for what it writes.
        jobs: As of ``in_torch.py``, by name.

    Returns:
        The jobs; by name, what is told of each; by name and kind, its arrays.
    """
    if find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    (root / "jobs.json").write_text(json.dumps([{"texts": TEXTS, **job} for job in jobs.values()]))
    program = Path(__file__).with_name("in_torch.py")
    done = subprocess.run(
        [sys.executable, str(program), str(root / "jobs.json"), str(root / "found.npz")],
        env=os.environ | {"HF_HOME": str(root / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = dict(zip(jobs, json.loads(done.stdout.splitlines()[-1]), strict=True))
    with np.load(root / "found.npz") as found:
        names = list(jobs)
        arrays = {(names[int(k.split("/")[0])], k.partition("/")[2]): found[k] for k in found.files}
    return jobs, told, arrays


def of(arrays, name, when):
    """The tensors of a job, by their names."""
    prefix = f"{when}/"
    return {
        key.removeprefix(prefix): array
        for (job, key), array in arrays.items()
        if job == name and key.startswith(prefix)
    }


def arrays_of(folder):
    """An exported folder as it loads here, under the names of PyTorch."""
    model, params = mtl.load_exported(folder)
    family, (task,) = model.encoder.config.family, model.tasks
    encoder = to_transformers(params["backbone"], family)
    return classifier_tensors(encoder, params[task.name], family, model.encoder.pooling)


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == expected[name].dtype == np.float32, name
        assert np.array_equal(array, expected[name]), name
