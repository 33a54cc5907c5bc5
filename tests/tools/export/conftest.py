"""One trained run that all tests of exporting share."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.models.pretrained import load_backbone
from mtl_jax.runs.loop import train
from mtl_jax.tools.export.trained_run import TrainedRun
from mtl_jax.training.evaluator import ModelSpec

TEXTS = ["the film was good !", "", "a book", "we liked the phone very much . " * 5]


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


def expected_logits(run, texts=TEXTS):
    """What the model itself makes of texts: per task float32 [texts, outputs]."""
    vectors = expected_vectors(run, texts)
    return {head.name: vectors @ head.params["kernel"] + head.params["bias"] for head in run.heads}


def expected_vectors(run, texts):
    """The pooled vectors of texts, each by itself: float32 [texts, hidden]."""
    spec = ModelSpec(run.config, (("x", 1),), run.pooling, "float32", run.max_length)
    module, found = spec.model(), []
    for text in texts:
        ids = run.tokenizer(text, truncation=True, max_length=run.max_length)["input_ids"]
        batch = {
            "input_ids": jnp.array([ids]),
            "segment_ids": jnp.ones((1, len(ids)), jnp.int32),
            "position_ids": jnp.arange(len(ids))[None],
            "x": jnp.full((1, 1), -1),
        }
        params = {"params": {"backbone": run.backbone}}
        found.append(np.asarray(module.apply(params, batch, method="pooled"))[0, 0])
    return np.stack(found)
