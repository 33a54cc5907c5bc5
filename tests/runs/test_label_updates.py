"""Updates that met labels of a task, against the batches of the library's own order."""

import dataclasses
import json

from mtl_jax.config.train import TrainConfig
from mtl_jax.data.batches import train_batches
from mtl_jax.data.kinds import has_label
from mtl_jax.runs.label_updates import updates_by_task
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.inputs import Inputs


def test_updates_are_counted_in_the_batches_of_every_phase(small_settings, tmp_path):
    phases = [
        {"scenario": "none_frozen", "steps": 4},
        {"scenario": "classifier_frozen", "steps": 3, "task_weights": {"classifier": 0.0}},
        {"scenario": "none_frozen", "steps": 5},
    ]
    recipe = tmp_path / "phases.json"
    recipe.write_text(json.dumps(phases))
    data = dataclasses.replace(small_settings["data"], label_fraction=("sentiment=0.04",))
    settings = {**small_settings, "data": data, "scenario": None, "recipe": str(recipe), "seed": 3}
    config = TrainConfig(**settings, workdir="")
    run = PhaseRun(config, Inputs(config))
    # The third phase goes on in the order of the first, whose texts it has, into a second pass.
    batches = list(train_batches(run.training.texts, run.plan, config.seed, 0, 9))
    met = [bool(has_label(batch["sentiment"]).any()) for batch in batches]
    assert 0 < sum(met) < len(met)
    assert updates_by_task(run, [4, 3, 5]) == {"classifier": 9, "sentiment": sum(met) + 3}
    # A phase that was not begun has none.
    assert updates_by_task(run, [4]) == {"classifier": 4, "sentiment": sum(met[:4])}
