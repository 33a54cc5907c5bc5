"""The training loop, from settings to a finished folder."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

from mtl_jax import freeze as freezing
from mtl_jax.checkpoint import Checkpoints
from mtl_jax.config import TASKS, TrainConfig
from mtl_jax.console import say, training_bar
from mtl_jax.data.batches import train_batches
from mtl_jax.errors import UserError
from mtl_jax.evaluate import majority_baseline, neighbour_probe
from mtl_jax.freeze import Freeze
from mtl_jax.inputs import Inputs
from mtl_jax.meter import Meter
from mtl_jax.metrics import mean_macro_f1
from mtl_jax.run import Run
from mtl_jax.workdir import Workdir, write_json

_LOG_EVERY = 10


def train(config: TrainConfig, inputs: Inputs | None = None) -> dict[str, Any]:
    """Trains one scenario, or goes on where an earlier call on the same folder stopped.

    Args:
        config: The settings.
        inputs: What ``Inputs(config)`` gives, to share it between runs.

    Returns:
        The result, which is also the last line of ``metrics.jsonl``.

    Raises:
        UserError: The settings, the data or the folder are at fault; what was there before
            is as it was.
    """
    config = config.absolute()
    shared, inputs = inputs, inputs or Inputs(config)
    run = Run(config, inputs)
    texts, held_out = (len(inputs.split(name).texts) for name in ("train", "validation"))
    workdir = Workdir(config.workdir)
    with contextlib.closing(workdir):
        workdir.claim(run.record())
        if result := workdir.result():
            say(f"{config.workdir} is done: the result is the last line of its metrics.jsonl")
            return result
        workdir.keep_tokenizer(inputs.reader.tokenizer)
        for note in () if shared else inputs.notes():
            say(note)
        say(f"{_title(config)}: {texts:,} texts to train on, {held_out:,} to validate")
        with contextlib.closing(Checkpoints(workdir.checkpoints)) as checkpoints:
            meter = _fit(run, workdir, checkpoints)
            result = _result(run, workdir, checkpoints, meter)
        workdir.log(result)
        return result


def _fit(run: Run, workdir: Workdir, checkpoints: Checkpoints) -> Meter:
    config, runner, plan, total = run.config, run.evaluator.runner, run.plan, run.total_steps
    training, validation = run.split("train"), run.split("validation")
    stepper = run.stepper()
    vectors = stepper.vectors(training.texts) if total else None
    data = train_batches(training.texts, plan, config.seed, config.epochs)
    trainable, frozen = run.freeze.split(run.params)
    frozen_before = freezing.digest(frozen)
    state = stepper.program.init(trainable, config.seed)
    meter = Meter({"train_seconds": run.feature_seconds})
    last, done = checkpoints.last_step, checkpoints.last_step or 0
    workdir.rewind(last)
    if last is not None:
        say(f"resuming from step {last} of {total}")
        params, state, progress = checkpoints.restore(last, state, data, run.freeze)
        _, frozen = run.freeze.split(params)
        meter = Meter(progress["meter"])
    state, frozen = runner.replicate(state), runner.replicate(frozen)

    def until_stop(done: int) -> int:
        every = [plan.steps, *([config.checkpoint_every] if config.checkpoint_every else [])]
        return min(steps - done % steps for steps in every)

    def save(score: float | None) -> None:
        params = runner.fetch(Freeze.merge(state.trainable, frozen))
        checkpoints.save(params, runner.fetch(state), data, {"meter": meter.state()}, score)

    def end_epoch(epoch: int) -> None:
        params = Freeze.merge(state.trainable, frozen)
        metrics = run.evaluator.metrics(params, validation, run.inputs.classes)
        for task in TASKS:
            if not math.isfinite(metrics[task]["loss"] or 0.0):
                raise UserError(
                    f"the {task} loss on the validation split is not finite after step {done}: "
                    "lower the learning rates; the last checkpoint is kept"
                )
        record = {"event": "epoch", "epoch": epoch, "step": done, "seconds": meter.train_seconds}
        losses = {"train_loss": meter.mean_losses(), "validation": metrics}
        workdir.log({**record, **losses})
        say(_epoch_line(epoch, config.epochs, metrics, meter))
        meter.reset()
        save(mean_macro_f1(metrics))

    if total == 0 and last is None:
        end_epoch(0)
    with training_bar(_title(config), total, done) as update:
        meter.resume()
        while done < total:
            batches = list(itertools.islice(data, min(stepper.most, until_stop(done))))
            compiled = stepper.step.seconds
            state, metrics = stepper(state, frozen, vectors, batches)
            meter.lap(stepper.step.seconds - compiled)
            for batch, of_step in zip(batches, metrics, strict=True):
                done += 1
                meter.add(done, of_step, int((batch["example"] >= 0).sum()))
                if done % _LOG_EVERY == 0:
                    rate = {"examples_per_second": meter.rate}
                    workdir.log({"event": "step", **meter.read(), **rate})
            update(done, meter.losses, meter.rate)
            ends_epoch = done % plan.steps == 0
            if ends_epoch or (config.checkpoint_every and done % config.checkpoint_every == 0):
                meter.read()
                meter.lap()
                if ends_epoch:
                    end_epoch(done // plan.steps)
                else:
                    save(None)
                meter.resume()
    checkpoints.wait()
    params = runner.fetch(Freeze.merge(state.trainable, frozen))
    optimizer = runner.fetch(state.opt_state)
    certificate = freezing.certificate(run.freeze, params, optimizer, frozen_before)
    write_json(workdir.path / "certificate.json", certificate)
    return meter


def _result(run: Run, workdir: Workdir, checkpoints: Checkpoints, meter: Meter) -> dict[str, Any]:
    """Measures the best checkpoint; the test split is read here, and nowhere else."""
    config, inputs, classes = run.config, run.inputs, run.inputs.classes
    best = checkpoints.best_step or 0
    params = run.evaluator.runner.replicate(checkpoints.restore_params(best))
    epochs = [record for record in workdir.records() if record["event"] == "epoch"]
    chosen = next(record for record in epochs if record["step"] == best)
    training = run.split("train")
    test = run.split("test") if "test" in inputs.corpus.splits else None
    for note in inputs.cut("test") if test else ():
        say(note)
    certificate = workdir.certificate()
    result = {
        "event": "result",
        "step": epochs[-1]["step"],
        "scenario": config.scenario,
        "seed": config.seed,
        "epochs": config.epochs,
        "best_epoch": chosen["epoch"],
        "test": test and run.evaluator.metrics(params, test, classes),
        "validation": chosen["validation"],
        "train": run.evaluator.metrics(params, training, classes),
        "train_seconds": meter.train_seconds if run.freeze.groups else 0.0,
        "compile_seconds": meter.compile_seconds + run.evaluation_compile_seconds,
        "examples_per_second": meter.rate,
        "train_examples": len(training.texts),
        "test_examples": len(test.texts) if test else 0,
        "trainable_parameters": certificate["trainable_parameters"],
        "total_parameters": sum(label["parameters"] for label in certificate["labels"].values()),
        "optimizer_state_bytes": certificate["optimizer_state_bytes"],
        "frozen_digest_unchanged": certificate["frozen_digest_unchanged"],
    }
    if not run.freeze.groups:
        asked = test or run.split("validation")
        result["probe"] = neighbour_probe(training, asked, classes)
        result["chance"] = majority_baseline(training, asked, classes)
    return result


def _title(config: TrainConfig) -> str:
    return f"{config.scenario}, seed {config.seed}"


def _epoch_line(epoch: int, epochs: int, metrics: dict[str, Any], meter: Meter) -> str:
    words = []
    for task in TASKS:
        if metrics[task]["examples"]:
            accuracy, f1 = metrics[task]["accuracy"], metrics[task]["macro_f1"]
            words.append(f"{task} accuracy {accuracy:.3f}, macro-F1 {f1:.3f}")
    rate = f"{meter.rate:.0f} examples/s" if meter.rate else "nothing to train"
    return f"epoch {epoch} of {epochs}: validation {'; '.join(words)} ({rate})"
