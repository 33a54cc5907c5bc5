"""How should the heads of a frozen backbone be trained? Over a hundred are trained at once.

Every combination of learning rate, weight decay and task weights is trained with every seed, all
in one compiled program. The best combination is chosen on validation, and only that one is measured
on test. By default these are 192 runs on the whole default corpus. If only a part of the training
texts or labels is used, each seed has a random part of its own, and seeds are trained one by one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

from mtl_jax.config.tasks import pairs_of
from mtl_jax.config.train import Settings, TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.studies.command import StudyCommand
from mtl_jax.studies.environment import circumstances
from mtl_jax.studies.settings import drawn

if TYPE_CHECKING:
    from pathlib import Path

    from mtl_jax.runs.head_sweep import Grid, SweepResult
    from mtl_jax.training.inputs import Inputs

_AXES = ("learning_rates", "weight_decays")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads(Settings):
    """Train the heads with every combination of settings and seeds, and report the best."""

    workdir: str
    """folder for results.jsonl and the report"""
    seeds: tuple[int, ...] = tuple(range(8))
    """random seeds; each combination is trained once with each"""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
    """peak learning rates of the heads, instead of --head-learning-rate"""
    weight_decays: tuple[float, ...] = (0.0, 0.01, 0.1)
    """weight decays, instead of --weight-decay"""
    task_weight_values: tuple[str, ...] = ()
    """task=weights pairs such as topic=0.5,1,2, instead of --task-weights"""
    epochs: int = 10
    """passes over the training examples"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", *_AXES):
            values = tuple(dict.fromkeys(getattr(self, name)))
            flag = "--" + name.replace("_", "-")
            if not values:
                raise UserError(f"{flag} is empty: name at least one")
            if not all(value >= 0 for value in values):
                raise UserError(f"{flag} {min(values)} must not be negative")
            object.__setattr__(self, name, values)
        if max(self.seeds) >= 2**32:
            raise UserError(f"--seeds {max(self.seeds)} must be at most {2**32 - 1}")
        _ = self.weights_tried

    @property
    def weights_tried(self) -> dict[str, tuple[float, ...]]:
        """The weights that each task is given, in the order of the tasks.

        Raises:
            UserError: One is no number of 0 or more.
        """
        flag = "--task-weight-values"
        tried: dict[str, tuple[float, ...]] = {
            task: (weight,) for task, weight in self.weights.items()
        }
        for task, words in pairs_of(
            flag, self.task_weight_values, "weights", self.data.tasks
        ).items():
            try:
                tried[task] = tuple(dict.fromkeys(float(word) for word in words.split(",")))
            except ValueError:
                tried[task] = (-1.0,)
            if not all(0 <= weight < math.inf for weight in tried[task]):
                raise UserError(f"{flag} {task}={words}: write numbers of 0 or more, as 0.5,1,2")
        return tried

    def grid(self) -> Grid:
        """The runs."""
        from mtl_jax.runs.head_sweep import Grid

        return Grid(
            self.seeds,
            self.learning_rates,
            self.weight_decays,
            tuple(self.weights_tried.items()),
        )


def run(study: Heads, command: str) -> int:
    """Trains the sweep and writes the report.

    Args:
        study: The settings.
        command: How it was called, for the report.

    Returns:
        How many runs count as failed: none, as one that diverges is a finding.

    Raises:
        UserError: The settings are wrong, no run has converged, or the folder holds something
            else.
    """
    from mtl_jax.core.console import Terminal, say
    from mtl_jax.core.json_files import read_lines, rewrite_lines
    from mtl_jax.runs.flops import flops_record
    from mtl_jax.runs.head_sweep import ready, sweep_of
    from mtl_jax.runs.precision import with_dtype
    from mtl_jax.runs.workdir import Workdir
    from mtl_jax.studies.report.heads_report import document, setting_table
    from mtl_jax.studies.report.write import show_table, write_document
    from mtl_jax.training.inputs import Inputs

    started = time.time()
    study = with_dtype(study.absolute(), [study.workdir])
    inputs, grid = Inputs(dataclasses.replace(study, data=study.data.whole())), study.grid()
    count = len(grid.seeds) * len(grid.settings())
    shared = {field.name: getattr(study, field.name) for field in dataclasses.fields(Settings)}
    config = TrainConfig(**shared, workdir="", scenario="backbone_frozen")
    # What is refused leaves no folder that would be taken for another study's.
    draws = list(dict.fromkeys(drawn(study.data, seed) for seed in study.seeds))
    parts = [inputs if data == study.data.whole() else inputs.limited(data) for data in draws]
    runs = [
        ready(dataclasses.replace(config, data=data), grid, part)
        for data, part in zip(draws, parts, strict=True)
    ]
    folder = Workdir(study.workdir)
    with contextlib.closing(folder):
        folder.claim(_record(study, inputs))
        results_file: Path = folder.path / "results.jsonl"
        if len(read_lines(results_file)) == count:
            say(f"{study.workdir} is done: its report is {folder.path / 'report.html'}")
            return 0
        notes = parts[0].notes()
        for note in notes:
            say(note)
        say(f"{count} pairs of heads, {study.epochs} epochs each")
        try:
            result = sweep_of(runs, grid)
        except UserError as error:
            raise UserError(
                f"{error}; other settings need another --workdir than {study.workdir}"
            ) from error
        lines = _lines(study, result, flops_record(runs[0], [runs[0].total_steps], 0))
        context = {**circumstances(command, started), "data": notes}
        report = write_document(folder.path, document(lines, context))
        rewrite_lines(results_file, lines)
    show_table(Terminal(), setting_table(lines, most=12))
    say(f"{count} runs, this call took {time.time() - started:.0f} s; the report is {report}")
    return 0


def _lines(study: Heads, result: SweepResult, flops: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of ``results.jsonl``: one for each run, all of which take as many FLOPs."""
    lines = []
    for number, setting in enumerate(result.settings):
        for row, seed in enumerate(study.seeds):
            scores = result.validation[row, number].tolist()
            diverged = any(score != score for score in scores)
            kept = int(result.kept[row, number])
            chosen = number == result.chosen
            lines.append(
                {
                    "arm": "backbone_frozen",
                    "seed": seed,
                    **_subset(study, seed),
                    "setting": setting,
                    "epochs": list(result.measured),
                    "validation": None if diverged else scores,
                    "best_epoch": None if diverged else result.measured[kept],
                    "score": None if diverged else scores[kept],
                    "chosen": chosen,
                    "test": result.test[row] if chosen and result.test else None,
                    "train_flops": flops["train_flops"],
                }
            )
    return lines


def _subset(study: Heads, seed: int) -> dict[str, int]:
    """Which draw of the training texts a seed has, where that is not all of them."""
    subset = drawn(study.data, seed).train_subset
    return {} if subset is None else {"train_subset": subset}


def _record(study: Heads, inputs: Inputs) -> dict[str, Any]:
    settings = dataclasses.asdict(study)
    del settings["workdir"]
    return {"study": "heads", "settings": settings, **inputs.record()}


main = StudyCommand(Heads, __doc__ or "", run, "mtl-jax study heads")
