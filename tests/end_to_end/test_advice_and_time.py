"""No advice rests on a measured time: with each of them another, every report says the same."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtl_jax.studies.report import (
    backbones_report,
    heads_report,
    quality_report,
    scarce_report,
    unfreezing_report,
)
from mtl_jax.studies.report.document import Document, Heading, Picture, Table
from mtl_jax.studies.report.render import to_markdown
from mtl_jax.studies.report.scenarios_report import build
from tests.synthetic_study import line, study

ARMS = {
    "all_frozen": (0.2, 0.0),
    "backbone_frozen": (0.70, 5.0),
    "top_1": (0.78, 20.0),
    "classifier_frozen": (0.82, 99.0),
    "gradual_unfreezing": (0.79, 80.0),
    "at_once": (0.795, 98.0),
    "none_frozen": (0.80, 100.0),
}
# Where a report says what something takes, or when and how long it was made.
MEASURED = ("step ms", "train s", "compile s", "examples/s")


def several(name: str, values: Sequence[Any], arms: Mapping[str, Any], **more: Any) -> list[Any]:
    return [
        line(arm, seed, score + 0.003 * ((seed * 7 + place) % 5 - 2), cost)
        | {"setting": {**more, name: value}}
        for value in values
        for place, (arm, (score, cost)) in enumerate(arms.items())
        for seed in range(4)
    ]


def scarce() -> list[Any]:
    names = ("joint", "scarce_head_frozen", "scarce_head_last", "single_task")
    numbers = ((0.6, 100), (0.61, 80), (0.55, 70), (0.5, 30))
    arms: dict[str, Any] = dict(zip(names, numbers, strict=True))
    return several("fraction", (0.1, 1.0), arms, scarce_task="sentiment")


def heads(results: Any, _failures: Any, _context: Any) -> Document:
    context = {"command": "x", "started": "now", "seconds": 3, "machine": "m", "memory": "1"}
    return heads_report.document(results, {**context, "data": ["d"]})


def swept() -> list[Any]:
    return [
        {
            "arm": "backbone_frozen",
            "seed": seed,
            "setting": {"head_learning_rate": rate},
            "validation": [0.5 + rate],
            "score": 0.5 + rate,
            "chosen": rate == 0.01,
            "test": None,
            "train_seconds": 1.0,
        }
        for rate in (0.001, 0.01)
        for seed in (0, 1)
    ]


STUDIES: dict[str, tuple[Callable[..., Document], list[Any]]] = {
    "freezing": (build, [line(a, s, *ARMS[a]) for a in ARMS for s in range(4)]),
    "synthetic": (build, study()),
    "quality": (quality_report.document, study()),
    "unfreezing": (unfreezing_report.document, several("max_train_examples", (64, 256), ARMS)),
    "scarce_task": (scarce_report.document, scarce()),
    "backbones": (backbones_report.document, several("backbone", ("small", "large"), ARMS)),
    "heads": (heads, swept()),
}


def without_measured_columns(document: Document) -> str:
    """The report but for the tables of times, and the columns with times of another."""
    blocks: list[Any] = []
    for block in document.blocks:
        if isinstance(block, Table):
            if "seconds" in block.title:
                continue
            kept = [i for i, name in enumerate(block.columns) if name not in MEASURED]
            rows = [[row.cells[i].plain for i in kept] for row in block.rows]
            blocks.append(Heading(f"{block.title} {block.note} {rows}"))
        elif not isinstance(block, Picture):
            blocks.append(block)
    return to_markdown(Document(document.title, document.subtitle, tuple(blocks)))


def busier(value: Any, factors: Iterator[float]) -> Any:
    """The same results of a machine that does something else as well."""
    if isinstance(value, list):
        return [busier(each, factors) for each in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for name, each in value.items():
        if "second" in name and each is not None:
            # A rate falls where a time rises.
            factor = next(factors) ** (-1 if "per_second" in name else 1)
            each = [factor * x for x in each] if isinstance(each, list) else factor * each
        else:
            each = busier(each, factors)
        found[name] = each
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_other_times_leave_the_advice_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch):
    # No picture is looked at here, and to write one takes a second.
    for module in ("figures", "heads_report", "search_report"):
        monkeypatch.setattr(f"mtl_jax.studies.report.{module}.png", lambda _figure: b"")
    report, results = STUDIES[name]
    context = {"command": "x", "started": "now", "data": []}
    expected = without_measured_columns(report(copy.deepcopy(results), [], context))
    assert re.search("Use |chosen|pays|changes|Chosen|highest mean", expected)

    for seed in (0, 1):
        factors = iter(np.random.default_rng(seed).uniform(1, 6, 10_000).tolist())
        other = busier(copy.deepcopy(results), factors)
        assert other != results
        assert without_measured_columns(report(other, [], context)) == expected


def test_results_of_an_earlier_version_are_reported_and_their_cost_is_not(tmp_path: Path):
    from mtl_jax.studies.report.write import write_report

    new = ("train_flops", "flops_of_phases", "step_seconds_median", "step_seconds_range")
    for name, (report, results) in STUDIES.items():
        if name == "heads":
            continue
        old = [{k: v for k, v in each.items() if k not in new} for each in results]
        assert "the training FLOPs were not counted" in to_markdown(report(old, [], {}))
    old = [{k: v for k, v in each.items() if k not in new} for each in study()]
    assert "The cost was not counted" in write_report(tmp_path, old).read_text()
    # What was there of a report before is not drawn again without its numbers.
    assert not (tmp_path / "quality_against_cost.png").exists()
