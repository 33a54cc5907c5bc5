"""What is kept of the studies that the documents report."""

from pathlib import Path

import pytest

from mtl_jax.studies import read_results, recompute
from mtl_jax.studies.settings import arm_folder
from mtl_jax.studies.stats.results import results_file

FOLDERS = sorted((Path(__file__).parents[2] / "experiments" / "results").iterdir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_predictions_give_its_numbers_again(folder):
    lines = read_results(results_file(folder))
    assert recompute(folder) == lines
    assert all(line["frozen_digest_unchanged"] for line in lines)
    for line in lines:
        arm = Path(arm_folder(str(folder), line["arm"], line["seed"], line.get("setting") or {}))
        assert {path.name for path in arm.iterdir()} == {
            "predictions-test.parquet",
            "predictions-validation.parquet",
        }
