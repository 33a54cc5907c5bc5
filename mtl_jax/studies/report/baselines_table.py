"""What linear models reach on the texts of a study, where its own table does not have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtl_jax.studies.report.document import Cell, Row, Table
from mtl_jax.studies.report.tables import LINEAR, reference_cells
from mtl_jax.studies.stats.results import (
    by_setting,
    evaluation_split,
    measures,
    score_name,
    setting_name,
    tasks_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtl_jax.studies.stats.results import Result


def baselines_table(
    results: Sequence[Result], baselines: Sequence[Mapping[str, Any]]
) -> Table | None:
    """A row for each setting and kind of linear model; None where there is none.

    Args:
        results: Lines of ``results.jsonl``.
        baselines: Lines of ``baselines.jsonl``.
    """
    split, settings = evaluation_split(results), list(by_setting(results))
    rows = []
    for setting in settings:
        for kind, words in LINEAR.items():
            found = [
                line[split]
                for line in baselines
                if line["baseline"] == kind and line.get(split) and setting_name(line) == setting
            ]
            if not found:
                continue
            names = [Cell(setting)] if any(settings) else []
            cells = reference_cells(found, results)
            rows.append(Row((*names, Cell(words), Cell(str(len(found))), *cells), "reference"))
    if not rows:
        return None
    columns = (
        *(("setting",) if any(settings) else ()),
        *("model", "draws", f"mean {score_name(results)}"),
        *(f"{task} {name}" for task in tasks_of(results) for _, name in measures(results, task)),
    )
    note = (
        "They train on the same texts as the arms: on words alone (TF-IDF), and on the pooled "
        "vectors of the frozen backbone. Their penalty is chosen on validation. Means over draws "
        "of the training texts, of several draws ± half of the 95 % t interval."
    )
    return Table(f"Linear models on the {split} split", columns, tuple(rows), note)
