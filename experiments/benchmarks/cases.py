"""The rows of the benchmark as data: what each measures, and how that is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from experiments.benchmarks.judges import (
    CHECKPOINT_EVERY,
    OURS,
    THEIRS,
    Goal,
    Outcome,
    Samples,
    cost_of_checkpoints,
    faster,
    growth,
    lighter,
    optimizer_state,
    second_start,
    sentences_a_second,
    share_of_peak,
    share_of_speed,
    times_one,
)
from mtl_jax.config.model import Dtype


@dataclasses.dataclass(frozen=True)
class Job:
    """One thing to measure. Cases that share a job share its samples.

    Attributes:
        measurement: A key of ``benchmark_workers.MEASUREMENTS``.
        scenario: What is frozen; the name of a recipe where ``recipe`` says so.
        sentences: Training sentences, before ``--sentences-scale``.
        epochs: Passes over them.
        variants: Heads, or seeds, that are trained at once.
        fresh: Whether it has a process of its own, so that its peak memory can be told.
        recipe: Whether ``scenario`` is a recipe.
        processes: Over how many processes a training is spread.
        devices: CPU devices of each.
        checkpoint_every: As of a run.
        whole: Whether it starts processes of its own, whose whole time counts.
        dtype: Of the encoder's matrix products.
    """

    measurement: str
    scenario: str = "backbone_frozen"
    sentences: int = 64
    epochs: int = 1
    variants: int = 1
    fresh: bool = False
    recipe: bool = False
    processes: int = 1
    devices: int = 1
    checkpoint_every: int = 0
    whole: bool = False
    dtype: Dtype = "float32"


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the benchmark.

    Attributes:
        jobs: ``(label, job)``, measured in turn, again and again.
        judge: Samples to outcomes.
        repeated: Whether the clock decides; what is only counted is run once.
        optional: Labels that ``judge`` can do without.
        platform: Where its goal holds, as jax names it; None for everywhere.
    """

    jobs: tuple[tuple[str, Job], ...]
    judge: Callable[[Samples], list[Outcome]]
    repeated: bool = True
    optional: tuple[str, ...] = ()
    platform: str | None = None


def _sides(**job: Any) -> tuple[tuple[str, Job], ...]:
    return ((OURS, Job("train", **job)), (THEIRS, Job("pytorch", **job)))


_SPREAD = {"scenario": "none_frozen", "sentences": 1024}
_EXTRACTIONS: tuple[tuple[str, Dtype, float], ...] = (
    ("extract", "float32", 1.5),
    ("extract_bfloat16", "bfloat16", 1),
)
_GRADUAL = ("gradual_unfreezing", "none_frozen")
_FULL = _sides(scenario="none_frozen", sentences=2048)

CASES: Mapping[str, Case] = {
    "backbone_frozen": Case(
        _sides(scenario="backbone_frozen", sentences=4096, epochs=10), faster(Goal(low=8))
    ),
    "heads": Case(
        (
            ("many", Job("heads", sentences=4096, epochs=10, variants=64)),
            ("one", Job("heads", sentences=4096, epochs=10)),
        ),
        times_one("heads", "64 heads at once against one, on cached vectors", Goal(high=10)),
    ),
    "top_2": Case(_sides(scenario="top_2", sentences=1024, epochs=5), faster(Goal(low=1.3))),
    "none_frozen": Case(_FULL, faster(Goal(low=1), steps_only=True)),
    "bfloat16": Case(
        _sides(scenario="none_frozen", sentences=2048, dtype="bfloat16"),
        faster(Goal(low=1), steps_only=True, name="none_frozen, bfloat16"),
    ),
    **{
        name: Case(
            ((name, Job("train", name, sentences=2048)), ("none_frozen", _FULL[0][1])),
            lighter(name, Goal(low=low)),
        )
        for name, low in (("bias_only", 1.3), ("lora_8", 1.25))
    },
    **{
        name: Case(
            (
                (OURS, Job("extract", sentences=5000, dtype=dtype)),
                (THEIRS, Job("sentence_transformers", sentences=5000, dtype=dtype)),
            ),
            sentences_a_second(name, Goal(low=low)),
        )
        for name, dtype, low in _EXTRACTIONS
    },
    "whole_run": Case(
        tuple(
            (side, Job(name, "none_frozen", sentences=1024, epochs=3, whole=True))
            for side, name in ((OURS, "whole_run"), (THEIRS, "pytorch_whole_run"))
        ),
        faster(Goal(low=1.5), name="whole run", what="whole process"),
    ),
    "second_start": Case(
        tuple(
            (label, Job(name, "none_frozen", sentences=1024, whole=True))
            for label, name in (("finished", "start_again"), ("killed", "go_on"))
        ),
        second_start(Goal(high=8)),
    ),
    "share_of_peak": Case(
        (*_FULL, ("peak", Job("peak"))), share_of_peak(Goal(low=70)), optional=(THEIRS,)
    ),
    "optimizer_state": Case(
        tuple((name, Job("train", scenario=name)) for name in ("backbone_frozen", "none_frozen")),
        optimizer_state,
        repeated=False,
    ),
    "gradual_unfreezing": Case(
        tuple(
            (name, Job("train", name, sentences=1024, epochs=7, recipe=name != "none_frozen"))
            for name in _GRADUAL
        ),
        times_one(
            "gradual unfreezing",
            "7 epochs in all, against `none_frozen`: whole run",
            Goal(high=0.6),
            labels=_GRADUAL,
        ),
    ),
    "growth": Case(
        tuple(
            (f"{name}, {size}", Job("train", scenario=name, sentences=sentences, fresh=True))
            for name in ("backbone_frozen", "none_frozen")
            for size, sentences in (("small", 1024), ("large", 10240))
        ),
        growth,
    ),
    "processes": Case(
        (
            ("two processes", Job("spread", **_SPREAD, processes=2)),
            ("one process", Job("spread", **_SPREAD, devices=2)),
        ),
        share_of_speed,
        platform="cpu",
    ),
    "checkpoints": Case(
        tuple(
            (name, Job("train", "none_frozen", 2048, checkpoint_every=every))
            for name, every in (("often", CHECKPOINT_EVERY), ("never", 0))
        ),
        cost_of_checkpoints,
    ),
    "seeds": Case(
        tuple(
            (label, Job("seeds", scenario="none_frozen", sentences=1024, variants=seeds))
            for label, seeds in (("many", 8), ("one", 1))
        ),
        times_one(
            "seeds",
            "8 seeds at once against one, `none_frozen`: training steps",
            Goal(high=2.5),
            key="train_seconds",
        ),
        platform="gpu",
    ),
}
