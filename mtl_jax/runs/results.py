"""What a finished run leaves in words and numbers: its result and its certificate."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.core import distributed
from mtl_jax.data.kinds import has_label
from mtl_jax.freezing.partition import Params
from mtl_jax.freezing.phase import Phase
from mtl_jax.freezing.scenarios import FROZEN
from mtl_jax.runs.monitoring.train_metrics import Meter, Stopwatch
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.predictions import write_predictions
from mtl_jax.training.evaluator import majority_baseline, neighbour_probe, probe_flops
from mtl_jax.training.inputs import Split
from mtl_jax.training.metrics import of_metrics, score


def run_certificate(phases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The certificate of a run from those of its phases.

    Args:
        phases: ``partition.certificate`` of each, in their order.

    Returns:
        That of the last phase, but with the largest ``trainable_parameters`` and
        ``optimizer_state_bytes`` of all, and unchanged only where every phase left what it
        froze as it was; and all of them under ``phases``.
    """
    largest = ("trainable_parameters", "optimizer_state_bytes")
    return {
        **phases[-1],
        **{name: max(phase[name] for phase in phases) for name in largest},
        "frozen_digest_unchanged": all(phase["frozen_digest_unchanged"] for phase in phases),
        "phases": list(phases),
    }


def step_record(run: PhaseRun, count: int, meter: Meter) -> dict[str, Any]:
    """A step for ``metrics.jsonl``.

    Args:
        run: The run, in the phase of the step.
        count: Steps of its schedule before it.
        meter: Its losses and seconds; waits for the step.

    Raises:
        UserError: A loss or the norm of the gradient is not finite.
    """
    optimizer = run.plans[run.index].optimizer
    return {
        "event": "step",
        "phase": run.index + 1,
        **meter.read(),
        "learning_rates": optimizer.rates(run.partition.groups, count),
        "examples_per_second": meter.rate,
    }


def epoch_record(
    phase: Phase,
    index: int,
    step: int,
    epoch: float,
    meter: Meter,
    validation: Mapping[str, Any],
) -> dict[str, Any]:
    """A measurement for ``metrics.jsonl``.

    Args:
        phase: The phase it is made in.
        index: Which that is, from 0.
        step: Steps of the run.
        epoch: Passes over the training texts; a whole number where it is one.
        meter: Its losses and seconds.
        validation: The metrics on validation.
    """
    return {
        "event": "epoch",
        "epoch": _whole(epoch),
        "step": step,
        "phase": index + 1,
        "scenario": phase.scenario,
        "seconds": meter.train_seconds,
        "train_loss": meter.mean_losses(),
        # Of many classes they would be most of the file.
        "validation": {
            task: {name: value for name, value in of_task.items() if name != "per_class"}
            for task, of_task in validation.items()
        },
    }


def _whole(epochs: float) -> float:
    """So many epochs for a record; a whole number where it is one."""
    rounded = round(epochs, 4)
    return int(rounded) if rounded == int(rounded) else rounded


def run_result(
    run: PhaseRun,
    epochs: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
    certificate: Mapping[str, Any],
    stopped: str | None,
) -> dict[str, Any]:
    """The part of a result that the folder tells.

    Args:
        run: The run, in any phase.
        epochs: The measurements, as ``metrics.jsonl`` has them.
        chosen: That of them which is the best.
        certificate: See ``run_certificate``.
        stopped: Why the recipe has ended early, if it has.
    """
    config = run.config
    result: dict[str, Any] = {
        "event": "result",
        "step": epochs[-1]["step"],
        "scenario": config.scenario,
        "recipe": config.recipe,
        "seed": config.seed,
        **({} if (subset := config.data.train_subset) is None else {"train_subset": subset}),
        "epochs": _whole(run.epochs),
        "best_epoch": chosen["epoch"],
    }
    if config.recipe is not None:
        result |= {
            "best_phase": chosen["phase"],
            "best_scenario": chosen["scenario"],
            "phases": len(certificate["phases"]),
            "stopped": stopped,
        }
    return result | {
        "trainable_parameters": certificate["trainable_parameters"],
        "trainable_parameters_by_label": _by_label(certificate["phases"]),
        "total_parameters": sum(part["parameters"] for part in certificate["labels"].values()),
        "optimizer_state_bytes": certificate["optimizer_state_bytes"],
        "frozen_digest_unchanged": certificate["frozen_digest_unchanged"],
    }


def _by_label(phases: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Of ``head``, ``backbone`` and ``lora`` the most that a phase has trained."""
    most: dict[str, int] = {}
    for phase in phases:
        trained: Counter[str] = Counter()
        for label, part in phase["labels"].items():
            if label != FROZEN:
                trained[label.partition("/")[0]] += part["parameters"]
        most |= {label: max(count, most.get(label, 0)) for label, count in trained.items()}
    return most


def steps_of_phases(records: Sequence[Mapping[str, Any]]) -> list[int]:
    """Updates in each phase that a finished run has begun.

    Args:
        records: The lines of ``metrics.jsonl``.
    """
    ends = [record["step"] for record in records if record["event"] == "phase"]
    return [end - start for start, end in itertools.pairwise([0, *ends])]


def by_phase(
    run: PhaseRun, steps: Sequence[int], epochs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What each phase that was begun has done, and what it has left of every task.

    Args:
        run: The run, in any phase.
        steps: See ``steps_of_phases``.
        epochs: The measurements, as ``metrics.jsonl`` has them.

    Returns:
        Per phase its ``steps``, the ``tasks`` whose losses counted, and under ``validation`` the
        score of each task at its end, None where it was not measured.
    """
    found = []
    for index, count in enumerate(steps):
        measured = [record for record in epochs if record["phase"] == index + 1]
        scores = measured[-1]["validation"] if measured else {}
        found.append(
            {
                "steps": count,
                "tasks": list(run.plans[index].phase.tasks),
                "validation": {task: score(of_task) for task, of_task in scores.items()},
            }
        )
    return found


def untrained_heads(run: PhaseRun, steps: Sequence[int], step: int) -> list[str]:
    """The tasks with training labels and a weight whose heads are what chance has made them.

    Args:
        run: The run, in any phase.
        steps: See ``steps_of_phases``.
        step: Of the checkpoint that is the result: what was trained after it is not in it.
    """
    labels, begun, trained = run.inputs.split("train").texts.labels, 0, set[str]()
    for plan, count in zip(run.plans, steps, strict=False):
        if count and begun < step:
            trained |= plan.trained_heads & set(plan.phase.tasks)
        begun += count
    return [
        task
        for task, weight in run.config.weights.items()
        if task not in trained and has_label(labels[task]).any() and weight > 0
    ]


# Training texts that are measured at the end, beside the test split: enough to tell overfitting.
_MOST_OF_TRAINING = 500


def _some_training(run: PhaseRun) -> Split:
    """The training texts that are measured at the end: evenly spaced, so that all sources count."""
    training, most = run.split("train"), _MOST_OF_TRAINING
    if run.config.measure_train or len(training.texts) <= most:
        return training
    return training.take(np.linspace(0, len(training.texts) - 1, most).round().astype(np.int64))


def measurements(
    run: PhaseRun,
    params: Params,
    folder: Path,
    *,
    probe: bool,
    known: tuple[Mapping[str, Any], Mapping[str, np.ndarray]] | None = None,
) -> tuple[dict[str, Any], int, float]:
    """The part of a result that is measured at its end; leaves ``predictions-<split>.parquet``.

    Args:
        run: In the phase of the parameters.
        params: All of them.
        folder: Where the predictions of every split are left.
        probe: Whether nothing was trained, so that the heads tell nothing: then the nearest
            neighbours and the commonest class stand beside them.
        known: Their metrics and logits on validation, where they have been measured already.

    Returns:
        It, and the FLOPs and the seconds of the probe, 0 without one.
    """
    classes = run.inputs.classes
    placed = run.evaluator.runner.replicate(params)

    def leave(name: str, split: Split, logits: Mapping[str, np.ndarray]) -> None:
        path, sources = folder / f"predictions-{name}.parquet", run.inputs.corpus.sources
        distributed.call_on_main(
            lambda: write_predictions(path, split.examples, logits, run.inputs.tasks, sources)
        )

    def measured(name: str, split: Split) -> dict[str, Any]:
        metrics, logits = run.evaluator.measure(placed, split, classes)
        leave(name, split, logits)
        return metrics

    def validation() -> Mapping[str, Any]:
        split = run.split("validation")
        if known is None:
            return measured("validation", split)
        leave("validation", split, known[1])
        return known[0]

    # The test split first, for which no room has been kept.
    test = run.split("test") if "test" in run.inputs.corpus.splits else None
    training = run.split("train")
    result = {
        "test": test and measured("test", test),
        "validation": validation(),
        "train": measured("train", _some_training(run)),
        "train_examples": len(training.texts),
        "test_examples": len(test.texts) if test else 0,
    }
    if not probe:
        return result, 0, 0.0
    asked = test or run.split("validation")
    watch = Stopwatch()
    result["probe"] = neighbour_probe(training, asked, classes)
    seconds = watch.lap()
    result["chance"] = majority_baseline(training, asked, classes)
    return result, probe_flops(training, asked), seconds


def in_words(metrics: Mapping[str, Any], rate: float) -> str:
    """What a measurement on validation has shown, for a reader."""
    words = []
    for task, of_task in metrics.items():
        if of_task["examples"]:
            words.append(f"{task} {of_metrics(of_task).in_words(of_task)}")
    speed = f"{rate:.0f} examples/s" if rate else "nothing to train"
    return f"validation {'; '.join(words)} ({speed})"
