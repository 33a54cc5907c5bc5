"""What ``plan --recipe`` foretells of each phase."""

import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.runs.loop import train
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.workdir import Workdir
from mtl_jax.tools.plan import plan, tables, total_time
from mtl_jax.training.inputs import Inputs


@pytest.fixture(scope="module")
def estimates(shared_settings):
    settings = TrainConfig(**shared_settings | {"epochs": 3}, workdir="")
    return plan(settings, (), 0, "gradual_unfreezing")


def test_each_phase_is_a_row(estimates):
    assert [estimate.scenario for estimate in estimates] == [
        "1 backbone_frozen",
        "2 top_1",
        "3 none_frozen",
    ]
    assert [table.row_count for table in tables(estimates, 250)] == [3]
    assert not [warning for estimate in estimates for warning in estimate.warnings]


def test_what_is_counted_is_what_a_run_proves(estimates, shared_settings, tmp_path):
    config = TrainConfig(
        **shared_settings | {"epochs": 3}, workdir=str(tmp_path), recipe="gradual_unfreezing"
    )
    train(config)
    proofs = Workdir(tmp_path).certificate()["phases"]
    for estimate, proof in zip(estimates, proofs, strict=True):
        assert estimate.cost.trainable_parameters == proof["trainable_parameters"]
        assert estimate.cost.optimizer_state_bytes == proof["optimizer_state_bytes"]


def test_only_the_first_phase_computes_what_is_kept_and_only_the_last_is_tested(estimates):
    seconds = [estimate.cost.seconds for estimate in estimates]
    assert [each["prefix"] > 0 for each in seconds] == [True, False, False]
    assert [each["final"] > 0 for each in seconds] == [False, False, True]
    assert all(each["training"] > 0 and each["validation"] > 0 for each in seconds)
    assert total_time(estimates).endswith(" s")


def test_a_phase_of_one_task_counts_its_own_texts(small_settings):
    """Fewer steps in an epoch of the texts that have a sentiment label."""
    data = small_settings["data"]
    thinned = type(data)(**{**vars(data), "label_fraction": ("sentiment=0.2",)})
    settings = TrainConfig(**small_settings | {"data": thinned, "epochs": 6}, workdir="")
    rows = plan(settings, (), 0, "sequential_heads")
    assert [row.scenario for row in rows] == [
        "1 sentiment_frozen",
        "2 classifier_frozen",
        "3 none_frozen",
    ]
    run = PhaseRun(
        TrainConfig(
            **small_settings | {"data": thinned, "epochs": 6},
            workdir="",
            recipe="sequential_heads",
        ),
        Inputs(settings),
    )
    first, second, third = run.plans
    assert second.batches.steps < first.batches.steps == third.batches.steps
    assert second.steps == 2 * second.batches.steps


def test_a_recipe_that_can_not_be_is_told(small_settings):
    settings = TrainConfig(**small_settings, workdir="")
    with pytest.raises(
        UserError, match="recipe top_down_9: phase 2: scenario 'top_9' does not fit"
    ):
        plan(settings, (), 0, "top_down_9")
