from typing import Any

import pytest

from mtl_jax.studies.report.document import Heading, Picture, Table
from mtl_jax.studies.report.heads_report import document, trial_scores
from mtl_jax.studies.report.search_report import search_blocks, search_table
from tests.synthetic_study import metrics

CONTEXT = {
    "command": "python -m experiments.heads",
    "started": "2025-01-02 03:04",
    "seconds": 7.0,
    "machine": "2 CPU cores",
    "memory": "8 GiB",
    "data": ["Sentences"],
}


def sweep() -> list[dict[str, Any]]:
    """Four settings of two seeds, of which the last diverges with one."""
    scores = {0.001: (0.1, 0.3), 0.01: (0.5, 0.7), 0.1: (0.4, 0.4), 1.0: (0.9, None)}
    return [
        {
            "arm": "backbone_frozen",
            "seed": seed,
            "setting": {"head_learning_rate": rate, "weight_decay": 0.0},
            "validation": None if score is None else [score - 0.1, score],
            "best_epoch": 2,
            "score": score,
            "chosen": rate == 0.01,
            "test": metrics(0.6) if rate == 0.01 else None,
        }
        for rate, found in scores.items()
        for seed, score in enumerate(found)
    ]


def test_a_trial_is_a_setting_and_a_diverged_one_found_nothing():
    assert trial_scores(sweep()) == pytest.approx([0.2, 0.6, 0.4, 0.0])


def test_search_table_by_hand():
    rows = [[cell.text for cell in row.cells] for row in search_table([0.2, 0.6, 0.4, 0.0]).rows]
    # The mean; 7/16, 5/16 and 3/16 of the three largest; (175, 65 and 15) / 256.
    two = (7 * 0.6 + 5 * 0.4 + 3 * 0.2) / 16
    four = (175 * 0.6 + 65 * 0.4 + 15 * 0.2) / 256
    assert rows == [
        ["1 setting", "0.300", "−0.300"],
        ["2 settings", f"{two:.3f}", f"−{0.6 - two:.3f}"],
        ["4 settings", f"{four:.3f}", f"−{0.6 - four:.3f}"],
    ]


def test_the_report_of_a_sweep_shows_its_search():
    blocks = document(sweep(), CONTEXT).blocks
    at = blocks.index(Heading("What a smaller search would have found"))
    picture, table = blocks[at + 1 : at + 3]
    assert isinstance(picture, Picture)
    assert picture.name == "search.png"
    assert picture.png.startswith(b"\x89PNG")
    assert isinstance(table, Table)
    assert [row.cells[0].text for row in table.rows] == ["1 setting", "2 settings", "4 settings"]


def test_one_setting_is_no_search():
    assert search_blocks([0.5]) == []
