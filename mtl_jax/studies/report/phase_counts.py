"""In which phase of a recipe the best measurement of each run was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mtl_jax.studies.report.document import Block, Cell, Row, Table
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.results import Result, arms_of

_NOTE = (
    "A run's scores are those of its best measurement on validation: where that is one of an "
    "early phase, the later ones have bought nothing."
)


def best_phases(results: Sequence[Result]) -> list[Block]:
    """A table of how many runs of each recipe were best in which of its phases.

    Args:
        results: Lines of ``results.jsonl``; ``phases`` is how many there were and
            ``best_phase`` counts from 1; those of scenarios lack both.

    Returns:
        Nothing where no recipe has been run.
    """
    known = [result for result in results if result.get("best_phase")]
    if not known:
        return []
    last = max(int(result["phases"]) for result in known)
    rows = []
    for arm in arms_of(known):
        counts, names = Counter[int](), dict[int, str]()
        for result in (result for result in known if result["arm"] == arm):
            counts[result["best_phase"]] += 1
            names[result["best_phase"]] = result["best_scenario"]
        most = max(int(result["phases"]) for result in known if result["arm"] == arm)
        texts = [
            f"{counts[phase]} `{names[phase]}`" if counts[phase] else "0"
            for phase in range(1, most + 1)
        ]
        texts += [formatting.MISSING] * (last - most)
        rows.append(Row((Cell(f"`{arm}`"), *map(Cell, texts))))
    columns = ("recipe", *(f"phase {phase}" for phase in range(1, last + 1)))
    return [Table("Runs by the phase of their best measurement", columns, tuple(rows), _NOTE)]
