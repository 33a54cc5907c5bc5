"""What is measured at the end of a run."""

import numpy as np
import pyarrow.parquet as pq

from mtl_jax.config.train import TrainConfig
from mtl_jax.runs import results
from mtl_jax.runs.loop import train
from mtl_jax.training.inputs import Inputs
from tests.conftest import TASKS


def test_some_training_texts_are_measured_at_the_end_and_all_where_asked(
    small_settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(results, "_MOST_OF_TRAINING", 20)
    settings = {**small_settings, "scenario": "backbone_frozen", "epochs": 1}
    inputs = Inputs(TrainConfig(**settings, workdir=""))

    def measured(name, **changes):
        folder = tmp_path / name
        result = train(TrainConfig(**settings, **changes, workdir=str(folder)), inputs)
        columns = pq.read_table(folder / "predictions-train.parquet").to_pydict()
        return result["train"], columns["example"]

    of_all, every = measured("all", measure_train=True)
    of_some, some = measured("some")
    assert len(every) == 96
    assert some == [every[i] for i in np.linspace(0, 95, 20).round().astype(int)]
    for task in TASKS:
        assert of_some[task]["examples"] <= 20 < of_all[task]["examples"]
