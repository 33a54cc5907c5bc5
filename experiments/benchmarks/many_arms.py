"""What claims and gathering cost in a study of very many arms, whose training is left out.

    python -m experiments.benchmarks.many_arms --arms 2000

Each arm leaves a result of the usual size at once. One worker claims them all, then they are
gathered into ``results.jsonl``, and gathered again when all are there.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from mtl_jax.config.train import DataConfig, TrainConfig
from mtl_jax.core.command_line import guarded, parse
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.runs.workdir import Workdir
from mtl_jax.studies import baselines, runner
from mtl_jax.studies.inputs_pool import InputsPool
from mtl_jax.studies.settings import Arm, Plan, arm_folder
from mtl_jax.studies.status import status_of
from mtl_jax.studies.work_queue import WorkQueue

_SEEDS = 10
_METRICS = {
    "accuracy": 0.8,
    "macro_f1": 0.7,
    "ece": 0.1,
    "weighted_f1_by_source": dict.fromkeys(("tweet", "movie_review", "editorial"), 0.7),
    "per_class": [{"class": str(i), "precision": 0.7, "recall": 0.7, "f1": 0.7} for i in range(4)],
}
_OF_SPLIT = {"classifier": _METRICS, "sentiment": _METRICS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManyArms:
    """Measure what claims and gathering cost, and print one line of JSON."""

    arms: int = 2000
    """arms of the study"""

    def __post_init__(self) -> None:
        if self.arms < 1:
            raise UserError(f"--arms {self.arms} must be at least 1")


def plan_of(folder: Path, arms: int) -> Plan:
    """A study of so many arms, ten seeds of each scenario."""

    def arm(number: int) -> Arm:
        name, seed = f"top_{number // _SEEDS + 1}", number % _SEEDS
        workdir = arm_folder(str(folder), name, seed, {})
        config = TrainConfig(data=DataConfig(), scenario=name, seed=seed, workdir=workdir)
        return Arm(name, config)

    return Plan(
        workdir=str(folder),
        record={"study": "many arms"},
        groups=[[arm(number)] for number in range(arms)],
        report=lambda path, *_: path / "report.html",
        settings={},
    )


class _NoInputs:
    """In the place of data and backbone, which no arm reads here."""

    def get(self, _settings: Any) -> Any:
        return SimpleNamespace(weights_digest="0" * 64)

    def opened(self, _settings: Any) -> None:
        return None

    def keep_only(self, _needed: Any) -> None:
        return None

    def corpora(self) -> dict[Any, Any]:
        return {}

    def notes(self) -> list[str]:
        return []


def leave_results(configs: list[TrainConfig], *_: Any) -> list[dict[str, Any]]:
    """Leaves what a run leaves, without training."""
    result = {"event": "result", "test": _OF_SPLIT, "validation": _OF_SPLIT, "train": _OF_SPLIT}
    for config in configs:
        folder = Workdir(config.workdir)
        folder.claim({"environment": {"devices": ["cpu"]}, "settings": {"seed": config.seed}})
        for epoch in (1, 2, 3):
            curve = {"step": 10 * epoch, "epoch": epoch, "phase": 0, "scenario": config.name}
            measured = {"seconds": 1.0, "train_loss": {}, "validation": _OF_SPLIT}
            folder.metrics.log({"event": "epoch", **curve, **measured})
        folder.metrics.log({**result, "step": 30})
        folder.close()
    return [dict(result) for _ in configs]


def measured(arms: int, folder: Path) -> dict[str, Any]:
    """Seconds of each part of the work, and milliseconds of a choice and claim of an arm."""
    plan, pool = plan_of(folder, arms), cast("InputsPool", _NoInputs())
    claims: list[float] = []
    take = WorkQueue.take

    def timed(queue: WorkQueue) -> list[str]:
        began = time.perf_counter()
        taken = take(queue)
        claims.append(1000 * (time.perf_counter() - began))
        return taken

    def seconds(action: Callable[[], Any]) -> float:
        began = time.perf_counter()
        action()
        return time.perf_counter() - began

    def gather() -> None:
        runner.gather(plan, pool, "", time.time())

    with (
        patch.object(runner, "train_group", leave_results),
        # What they are held against has no texts, either.
        patch.object(baselines, "leave_baselines", lambda *_, **__: None),
        patch.object(WorkQueue, "take", timed),
    ):
        work = seconds(lambda: runner.work(plan, pool))
    tenth = -(-arms // 10)
    found = {
        "arms": arms,
        "worker": work,
        "claim_ms": statistics.fmean(claims),
        "claim_ms_of_first_tenth": statistics.fmean(claims[:tenth]),
        "claim_ms_of_last_tenth": statistics.fmean(claims[-tenth:]),
        "status": seconds(lambda: status_of(str(folder))),
        "gather": seconds(gather),
        "gather_again": seconds(gather),
    }
    lines = read_lines(folder / "results.jsonl")
    if [(line["arm"], line["seed"]) for line in lines] != [
        (group[0].name, group[0].config.seed) for group in plan.groups
    ]:
        sys.exit("an arm was lost, doubled, or is out of its order")
    return {name: round(value, 3) for name, value in found.items()}


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit status."""
    return guarded(_main, argv)


def _main(argv: Sequence[str]) -> None:
    asked = parse(ManyArms, argv, "python -m experiments.benchmarks.many_arms", __doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(asked.arms, Path(folder) / "study")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
