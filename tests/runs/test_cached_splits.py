"""Activations that fit alone, in runs and studies that keep several kinds, one after the other."""

import gc
import json

import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.tools.cost import kept_arrays
from mtl_jax.training.cache.array_file import file_bytes
from mtl_jax.training.cache.array_store import GIB
from mtl_jax.training.inputs import Inputs


@pytest.fixture
def room(tiny_settings, tmp_path):
    """Settings with room for the token states of one phase, and no more than a tenth beside.

    Of three layers, so that there are states at two depths.
    """
    run = PhaseRun(
        TrainConfig(**tiny_settings | {"scenario": "top_1"}, workdir=""),
        Inputs(TrainConfig(**tiny_settings, workdir="")),
    )
    arrays = kept_arrays(run)
    size = 1.1 * sum(file_bytes(array.shape, array.dtype) for array in arrays) / GIB
    # Nothing may depend on when Python looks for cycles.
    gc.disable()
    more = {"cache_size": size, "cache_folder": str(tmp_path / "kept"), "epochs": 1}
    yield tiny_settings | more
    gc.enable()


@pytest.fixture
def recipe(tmp_path):
    def of(*scenarios):
        file = tmp_path / "recipe.json"
        file.write_text(json.dumps([{"scenario": name, "epochs": 1} for name in scenarios]))
        return str(file)

    return of


def test_phases_that_fit_one_by_one_are_trained(room, recipe, tmp_path):
    """The boundary goes up, and below it goes down: what an earlier phase has kept makes room."""
    config = TrainConfig(**room, recipe=recipe("top_2", "top_1"), workdir=str(tmp_path / "run"))
    assert train(config)["phases"] == 2


def test_gradual_unfreezing_needs_the_room_of_its_largest_phase(room, tmp_path):
    room |= {"epochs": 4}
    config = TrainConfig(**room, recipe="gradual_unfreezing", workdir=str(tmp_path / "run"))
    assert train(config)["phases"] == 4


def test_the_best_epoch_may_be_in_another_phase(room, recipe, tmp_path):
    """Its activations are made once more, in the place of the last phase's."""
    file = recipe("top_1", "top_2")
    phases = json.loads((tmp_path / "recipe.json").read_text())
    for phase, rate, epochs in zip(phases, (1e-2, 1.0), (6, 1), strict=True):
        phase |= {"learning_rates": {"backbone": rate, "head": rate}, "epochs": epochs}
    (tmp_path / "recipe.json").write_text(json.dumps(phases))
    config = TrainConfig(**room, recipe=file, workdir=str(tmp_path / "run"))
    result = train(config)
    assert (result["phases"], result["best_phase"]) == (2, 1)


def test_what_a_finished_run_has_kept_makes_room_for_the_next(room, tmp_path):
    """As of a study's arms, which share their inputs."""
    inputs = Inputs(TrainConfig(**room, workdir=""))
    for scenario in ("top_1", "top_2"):
        for seed in (0, 1):
            workdir = str(tmp_path / f"{scenario}-{seed}")
            config = TrainConfig(**room | {"scenario": scenario}, seed=seed, workdir=workdir)
            assert train(config, inputs)["scenario"] == scenario


def test_so_does_that_of_seeds_at_once_one_of_which_fails(room, tmp_path):
    inputs = Inputs(TrainConfig(**room, workdir=""))
    for scenario in ("top_1", "top_2"):
        folders = [tmp_path / f"{scenario}-{seed}" for seed in (0, 1)]
        folders[1].mkdir()
        (folders[1] / "mine.txt").write_text("not a run's")
        outcomes = train_seeds(
            [
                TrainConfig(**room | {"scenario": scenario}, seed=seed, workdir=str(folder))
                for seed, folder in enumerate(folders)
            ],
            inputs,
        )
        assert isinstance(outcomes[0], dict)
        assert not isinstance(outcomes[1], dict)
