"""The precision that no flag states: a folder's own, else the device's."""

import json
from pathlib import Path

from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.loop import train
from mtl_jax.runs.precision import with_dtype


def test_a_folder_keeps_what_it_was_begun_with(small_settings, tmp_path):
    begun, other = (str(tmp_path / name) for name in ("begun", "other"))
    settings = {**small_settings, "epochs": 1}
    result = train(TrainConfig(**settings, dtype="bfloat16", workdir=begun))
    left_open = TrainConfig(**settings, workdir=begun)
    assert with_dtype(left_open, [other, begun]).dtype == "bfloat16"
    assert with_dtype(left_open, [other]).dtype == "float32"
    assert train(left_open) == result
    train(TrainConfig(**settings, workdir=other))
    assert json.loads((Path(other) / "config.json").read_text())["settings"]["dtype"] == "float32"
