"""Lines of results.jsonl with numbers that a test can work out."""

from __future__ import annotations

from typing import Any

SOURCES = ("tweet", "movie_review", "product_review", "editorial")


def metrics(score: float, sources: tuple[str, ...] = SOURCES) -> dict[str, Any]:
    """Both tasks at the same macro-F1, so that it is also their mean."""
    return {
        "classifier": {"accuracy": score + 0.01, "macro_f1": score},
        "sentiment": {
            "accuracy": score + 0.02,
            "macro_f1": score,
            "weighted_f1_by_source": dict.fromkeys(sources, score - 0.03),
        },
    }


def line(
    arm: str,
    seed: int,
    validation: float,
    seconds: float,
    test: float | None = None,
    sources: tuple[str, ...] = SOURCES,
) -> dict[str, Any]:
    """One arm; its test score is its validation score unless given.

    It takes a GFLOP for each second, in 96 steps.
    """
    flops = int(1e9 * seconds)
    test = validation if test is None else test
    result: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "test": metrics(test, sources),
        "train": metrics(test + 0.05, sources),
        "validation": metrics(validation, sources),
        "train_flops": flops,
        "flops_of_phases": [{"steps": 96, "step": flops // 96, "prefix": flops % 96}],
        "train_seconds": seconds,
        "step_seconds_median": seconds / 96,
        "step_seconds_range": [seconds / 100, seconds / 90],
        "compile_seconds": 2.5,
        "examples_per_second": 3000 / seconds if seconds else None,
        "trainable_parameters": int(1000 * seconds),
        "optimizer_state_bytes": int(8000 * seconds),
        "frozen_digest_unchanged": True,
        "total_parameters": 200_000,
        "train_examples": 1000,
        "test_examples": 500,
        "epochs": 3,
        "curve": [
            {
                "epoch": epoch,
                "step": 32 * epoch,
                "seconds": seconds * epoch / 3,
                "train_loss": 1 / epoch,
                "validation": metrics(validation - 0.1 / epoch, sources),
            }
            for epoch in (1, 2, 3)
        ],
    }
    if arm == "all_frozen":
        result |= {"probe": metrics(0.61), "chance": metrics(0.2), "curve": []}
        # The pass of its frozen layers, and its probe.
        result |= {"train_flops": 4_000_000_000, "train_seconds": 4.0}
    return result


def study(seeds: tuple[int, ...] = (0, 1, 2)) -> list[dict[str, Any]]:
    """Five arms, of which top_2 is the cheapest within 0.01 of the best."""
    arms = {
        "none_frozen": (0.800, 100.0),
        "top_2": (0.795, 40.0),
        "backbone_frozen": (0.720, 5.0),
        "gradual": (0.790, 80.0),
        "all_frozen": (0.250, 0.0),
    }
    wobble = {"none_frozen": 0.002, "top_2": 0.001, "gradual": -0.001}
    return [
        line(arm, seed, score + wobble.get(arm, 0.003) * (seed - 1), seconds)
        for arm, (score, seconds) in arms.items()
        for seed in seeds
    ]
