"""What scenarios and recipes would cost and what is wrong with them, before any is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from mtl_jax.config.train import Settings, TrainConfig
from mtl_jax.core.console import duration, in_bytes, name_width, say, scaled, side_by_side
from mtl_jax.core.errors import UserError
from mtl_jax.data.kinds import has_label
from mtl_jax.freezing.scenarios import FROZEN
from mtl_jax.runs.notes import short_phases
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.tools.cost import Cost, EvaluationBatches, estimate_cost, kept_arrays
from mtl_jax.training.cache.array_file import file_bytes
from mtl_jax.training.inputs import Inputs

TITLE = "FLOPs per training text; time on this machine"
"""of the tables"""

_SECONDS = ("prefix", "training", "validation", "final", "total")
_TITLES = (
    *("trained", "frozen", "optimizer", "kept"),
    *(f"{name}\nFLOPs" for name in ("forward", "backward", "once")),
    *(f"{name}\ntime" for name in _SECONDS),
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The cost of a scenario or phase, None where it can't run, and what is to be said of it."""

    scenario: str
    cost: Cost | None
    warnings: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """A JSON object: ``scenario``, the fields of the cost, ``warnings``."""
        cost = dataclasses.asdict(self.cost) if self.cost else {}
        return {"scenario": self.scenario, **cost, "warnings": list(self.warnings)}


def plan(
    settings: Settings,
    scenarios: Sequence[str],
    measure_seconds: float,
    recipe: str | None = None,
) -> list[Estimate]:
    """Estimates what each scenario would cost. No workdir is made, no activations are kept.

    Of the test split only the lengths of its texts are used.

    Args:
        settings: What the runs have in common.
        scenarios: Names as of ``TrainConfig.scenario``.
        measure_seconds: See ``estimate_cost``; for each scenario.
        recipe: In the place of the scenarios, as of ``TrainConfig.recipe``: each of its phases
            is estimated, as if it took all the steps that it may.

    Raises:
        UserError: The settings or the data are at fault, or no scenario can run.
    """
    settings = settings.absolute()
    inputs = Inputs(settings)
    batches = EvaluationBatches(inputs)
    for note in inputs.notes():
        say(note)
    common = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)}
    if recipe is not None:
        run = PhaseRun(TrainConfig(**common, workdir="", recipe=recipe), inputs)
        for note in short_phases(run.config, run.plans):
            say(note)
        phases = [run.at(i, run.params) for i in range(len(run.plans))]
        names = [f"{phase.index + 1} {phase.phase.scenario}" for phase in phases]
        named = zip(names, phases, strict=True)
        return [_estimate(name, phase, batches, measure_seconds) for name, phase in named]
    estimates = []
    for scenario in dict.fromkeys(scenarios):
        try:
            run = PhaseRun(TrainConfig(**common, workdir="", scenario=scenario), inputs)
            for note in short_phases(run.config, run.plans):
                say(note)
            estimates.append(_estimate(scenario, run, batches, measure_seconds))
        except UserError as error:
            estimates.append(Estimate(scenario, None, (str(error),)))
    if not any(estimate.cost for estimate in estimates):
        raise UserError("; ".join(text for each in estimates for text in each.warnings))
    return estimates


def _estimate(name: str, run: PhaseRun, batches: EvaluationBatches, limit: float) -> Estimate:
    say(f"measuring {name}")
    return Estimate(name, estimate_cost(run, batches, limit), warnings_of(run))


def warnings_of(run: PhaseRun) -> tuple[str, ...]:
    """What a run's settings ask for that a user can hardly want, with what to do."""
    return (*_training_warnings(run), *_cache_warnings(run))


def _training_warnings(run: PhaseRun) -> Iterator[str]:
    config = run.config
    if not run.partition.groups:
        given = f": --epochs {config.epochs} has no effect" if config.epochs else ""
        yield f"nothing is trained{given}"
        return
    for group in run.partition.groups:
        if run.plans[run.index].optimizer.rate(group) == 0:
            kind = group.split("/")[0]
            yield (
                f"{group} is trained with --{kind}-learning-rate 0, at full cost, and will not "
                f"change: raise it, or use a scenario that freezes {group}"
            )
    trained = {path.split("/")[0] for path, label in run.partition.labels if label != FROZEN}
    weights = run.phase.weights
    if run.useless_weighting:
        yield run.useless_weighting
    labels = run.inputs.split("train").texts.labels
    if not any(weights.values()):
        yield "all task weights are 0, and so is every gradient: raise one of them"
    for task, weight in weights.items():
        if task in trained and weight == 0:
            yield (
                f"the {task} head is trained with --task-weights {task}=0, which leaves it "
                "without a gradient: raise it, or use a scenario that freezes that head"
            )
        if not np.any(has_label(labels[task])):
            yield (
                f"no training text has a {task} label, so that nothing is learned of that task: "
                "name its column in --label-columns, or do not rely on its head"
            )
    texts = len(run.inputs.training(run.phase.tasks).texts)
    if texts < config.batch_size:
        yield (
            f"{texts} training texts are less than one batch: an epoch is one step; lower "
            f"--batch-size {config.batch_size}"
        )


def _cache_warnings(run: PhaseRun) -> Iterator[str]:
    files = sum(file_bytes(array.shape, array.dtype) for array in kept_arrays(run))
    if files:
        yield from run.inputs.store.refusals(files)


def tables(estimates: Sequence[Estimate], width: int) -> list[Table]:
    """Tables with a row for each scenario that can run; FLOPs are per training text.

    Args:
        estimates: The scenarios.
        width: Columns of the terminal. What does not fit beside each other is in tables below
            each other, each with the names of the rows.
    """
    names, rows = [], []
    for estimate in estimates:
        if cost := estimate.cost:
            names.append(estimate.scenario)
            rows.append(
                [
                    f"{cost.trainable_parameters:,}",
                    f"{cost.frozen_parameters:,}",
                    in_bytes(cost.optimizer_state_bytes),
                    in_bytes(cost.cache_bytes),
                    *(scaled(cost.flops[n], 1000, ("", "k", "M", "G", "T")) for n in cost.flops),
                    *(duration(cost.seconds[name]) for name in _SECONDS),
                ]
            )
    widths = [
        max(map(len, (*title.split("\n"), *cells)))
        for title, *cells in zip(_TITLES, *rows, strict=True)
    ]
    first = name_width(("scenario", *names), width)
    return [_table(names, rows, first, places) for places in side_by_side(first, widths, width)]


def _table(
    names: Sequence[str], rows: Sequence[Sequence[str]], first: int, places: Sequence[int]
) -> Table:
    """The columns at some places, beside the names of the rows in a column of a width."""
    result = Table()
    result.add_column("scenario", width=first)
    for place in places:
        result.add_column(_TITLES[place], justify="right", no_wrap=True)
    for name, row in zip(names, rows, strict=True):
        result.add_row(Text(name, overflow="fold"), *(row[place] for place in places))
    return result


def total_time(estimates: Sequence[Estimate]) -> str:
    """What all of them take together."""
    return duration(sum(each.cost.seconds["total"] for each in estimates if each.cost))
