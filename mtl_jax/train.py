"""The training loop, from settings to a finished folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from importlib.metadata import version
from typing import Any

import jax

from mtl_jax import freeze as freezing
from mtl_jax.checkpoint import Checkpoints
from mtl_jax.config import TASKS, TrainConfig
from mtl_jax.console import say, training_bar
from mtl_jax.data.batches import train_batches
from mtl_jax.data.packing import Layout, TrainPlan
from mtl_jax.evaluate import ModelSpec, evaluator, majority_baseline, neighbour_probe
from mtl_jax.freeze import Freeze, Params
from mtl_jax.inputs import Inputs, Split
from mtl_jax.meter import Meter
from mtl_jax.metrics import mean_macro_f1
from mtl_jax.optim import OptimizerConfig, make_optimizer
from mtl_jax.parallel import Compiled, make_runner
from mtl_jax.rules import Rule
from mtl_jax.scenarios import scenario_rules
from mtl_jax.step import Program, train_step
from mtl_jax.workdir import Workdir, write_json

_LOG_EVERY = 10
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """What a training step is compiled from; equal specs share the compiled step."""

    model: ModelSpec
    freeze: Freeze
    optimizer: OptimizerConfig
    task_weights: tuple[float, float]
    layout: Layout
    on_pooled: bool


@functools.lru_cache(maxsize=8)
def _compiled(spec: TrainSpec) -> tuple[Program, Compiled]:
    program = Program(
        spec.model.model(),
        make_optimizer(spec.freeze, spec.optimizer),
        spec.freeze.depth(spec.model.bert.num_hidden_layers),
        spec.task_weights,
    )
    return program, Compiled(make_runner(spec.model.parallel), train_step, program, donate=True)


class Run:
    """One scenario and seed on its inputs, before its first step.

    Attributes:
        params: The initial parameters, on the host.
        freeze: Which of them train.
        evaluator: The compiled evaluation.
        feature_seconds: What the frozen backbone's vectors of the training split cost.
    """

    def __init__(self, config: TrainConfig, inputs: Inputs):
        self.config, self.inputs = config, inputs
        self.rules = scenario_rules(config.scenario, inputs.bert.num_hidden_layers)
        self.model = ModelSpec(
            bert=inputs.bert,
            classes=(len(inputs.classes["classifier"]), len(inputs.classes["sentiment"])),
            pooling=inputs.pooling,
            dtype=config.dtype,
            max_length=inputs.reader.max_length,
            parallel=config.parallel,
        )
        heads = self.model.model().init_heads(jax.random.key(config.seed))
        self.params: Params = {"backbone": inputs.backbone, **heads}
        self.freeze = Freeze.from_rules(self.params, self.rules)
        self.evaluator = evaluator(self.model)
        self.compiled_before = self.evaluator.compile_seconds
        self.feature_seconds = 0.0

    def split(self, name: str) -> Split:
        """A split; with pooled vectors where the whole backbone is frozen."""
        split = self.inputs.split(name)
        if not self.freeze.backbone_frozen:
            return split
        key = (name, self.config.dtype)
        if key not in self.inputs.pooled:
            start = time.perf_counter() + self.evaluator.compile_seconds
            vectors = self.evaluator.pooled(
                self.evaluator.runner.replicate(self.params), split.texts
            )
            seconds = time.perf_counter() + self.evaluator.compile_seconds - start
            self.inputs.pooled[key] = vectors, seconds
        vectors, seconds = self.inputs.pooled[key]
        if name == "train":
            self.feature_seconds = seconds
        return dataclasses.replace(split, texts=dataclasses.replace(split.texts, pooled=vectors))


def train(config: TrainConfig, inputs: Inputs | None = None) -> dict[str, Any]:
    """Trains one scenario, or goes on where an earlier call on the same folder stopped.

    Args:
        config: The settings.
        inputs: What ``Inputs.of(config)`` gives, to share it between runs.

    Returns:
        The result, which is also the last line of ``metrics.jsonl``.

    Raises:
        UserError: The settings, the data or the folder are at fault; what was there before
            is as it was.
    """
    config = config.absolute()
    inputs = inputs or Inputs.of(config)
    run = Run(config, inputs)
    splits = [inputs.split(name) for name in ("train", "validation")]
    workdir = Workdir(config.workdir)
    with contextlib.closing(workdir):
        workdir.claim(_record(config, inputs, run.rules))
        if result := workdir.result():
            say(f"{config.workdir} is done: the result is the last line of its metrics.jsonl")
            return result
        inputs.reader.tokenizer.save_pretrained(workdir.path / "tokenizer")
        for note in inputs.notes():
            say(note)
        say(
            f"{config.scenario}, seed {config.seed}: {len(splits[0].texts):,} texts to train on, "
            f"{len(splits[1].texts):,} to validate"
        )
        with contextlib.closing(Checkpoints(workdir.checkpoints)) as checkpoints:
            meter = _fit(run, workdir, checkpoints)
            result = _result(run, workdir, checkpoints, meter)
        workdir.log(result)
        return result


def _fit(run: Run, workdir: Workdir, checkpoints: Checkpoints) -> Meter:
    config, runner = run.config, run.evaluator.runner
    training, validation = run.split("train"), run.split("validation")
    plan = TrainPlan(
        training.texts.tokens.lengths,
        config.batch_size,
        runner.devices,
        run.inputs.bert.hidden_size,
    )
    total = plan.steps * config.epochs if run.freeze.groups else 0
    program, step_fn = _compiled(
        TrainSpec(
            run.model,
            run.freeze,
            _optimizer(config, total),
            (config.classifier_weight, config.sentiment_weight),
            plan.layout,
            run.freeze.backbone_frozen,
        )
    )
    data = train_batches(training.texts, plan, config.seed, config.epochs)
    trainable, frozen = run.freeze.split(run.params)
    state = program.init(trainable, config.seed)
    meter = Meter({"train_seconds": run.feature_seconds})
    frozen_before = freezing.digest(frozen)
    if (last := checkpoints.last_step) is not None:
        params, state, progress = checkpoints.restore(last, state, data, run.freeze)
        _, frozen = run.freeze.split(params)
        meter = Meter(progress["meter"])
        workdir.rewind(last)
        say(f"resuming from step {last} of {total}")
    done = last or 0
    state, frozen = runner.replicate(state), runner.replicate(frozen)

    def save(score: float | None) -> None:
        params = runner.fetch(Freeze.merge(state.trainable, frozen))
        checkpoints.save(params, runner.fetch(state), data, {"meter": meter.state()}, score)

    def end_epoch(epoch: int) -> None:
        params = Freeze.merge(state.trainable, frozen)
        metrics = run.evaluator.metrics(params, validation, run.inputs.classes)
        record = {"event": "epoch", "epoch": epoch, "step": done}
        record |= {"seconds": meter.train_seconds, "train_loss": meter.mean_losses()}
        workdir.log(record | {"validation": metrics})
        say(_epoch_line(epoch, config.epochs, metrics, meter))
        meter.reset()
        save(mean_macro_f1(metrics))

    with training_bar(f"{config.scenario}, seed {config.seed}", total, done) as update:
        meter.resume()
        while done < total:
            batch = next(data)
            examples = int((batch.pop("example") >= 0).sum())
            compiling = step_fn.seconds
            state, metrics = step_fn(state, frozen, runner.shard(batch))
            done += 1
            meter.add(done, runner.fetch(metrics), examples)
            meter.lap(step_fn.seconds - compiling)
            update(done, meter.last.get("loss", {}), meter.rate)
            if done % _LOG_EVERY == 1 and meter.last:
                workdir.log({"event": "step", **meter.last, "examples_per_second": meter.rate})
            if done % plan.steps == 0 or (
                config.checkpoint_every and done % config.checkpoint_every == 0
            ):
                meter.flush()
                meter.lap()
                if done % plan.steps == 0:
                    end_epoch(done // plan.steps)
                else:
                    save(None)
                meter.resume()
    if checkpoints.last_step is None and total == 0:
        end_epoch(0)
    checkpoints.wait()
    certificate = freezing.certificate(
        run.freeze,
        runner.fetch(Freeze.merge(state.trainable, frozen)),
        runner.fetch(state.opt_state),
        frozen_before,
    )
    write_json(workdir.path / "certificate.json", certificate)
    return meter


def _result(run: Run, workdir: Workdir, checkpoints: Checkpoints, meter: Meter) -> dict[str, Any]:
    """Measures the best checkpoint; the test split is read here, and nowhere else."""
    config, inputs, classes = run.config, run.inputs, run.inputs.classes
    best = checkpoints.best_step
    assert best is not None
    params = run.evaluator.runner.replicate(checkpoints.restore_params(best))
    epochs = [record for record in workdir.records() if record["event"] == "epoch"]
    chosen = next(record for record in epochs if record["step"] == best)
    training = run.split("train")
    test = run.split("test") if "test" in inputs.corpus.splits else None
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
        "compile_seconds": meter.compile_seconds
        + run.evaluator.compile_seconds
        - run.compiled_before,
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


def _optimizer(config: TrainConfig, total_steps: int) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rates=(
            ("head", config.head_learning_rate),
            ("backbone", config.backbone_learning_rate),
        ),
        total_steps=total_steps,
        warmup_steps=round(config.warmup_fraction * total_steps),
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )


def _record(config: TrainConfig, inputs: Inputs, rules: tuple[Rule, ...]) -> dict[str, Any]:
    """``config.json``: everything that is needed to repeat the run."""
    settings = dataclasses.asdict(config)
    del settings["workdir"]
    return {
        "settings": settings,
        "rules": rules,
        "bert": dataclasses.asdict(inputs.bert),
        "pooling": inputs.pooling,
        "classes": inputs.classes,
        "weights_sha256": inputs.weights_digest,
        "data": {"name": inputs.corpus.name, "fingerprint": inputs.corpus.fingerprint},
        "environment": {
            "versions": {package: version(package) for package in _PACKAGES},
            "devices": [str(device.device_kind) for device in jax.local_devices()],
        },
    }


def _epoch_line(epoch: int, epochs: int, metrics: dict[str, Any], meter: Meter) -> str:
    words = []
    for task in TASKS:
        if metrics[task]["examples"]:
            accuracy, f1 = metrics[task]["accuracy"], metrics[task]["macro_f1"]
            words.append(f"{task} accuracy {accuracy:.3f}, macro-F1 {f1:.3f}")
    rate = f"{meter.rate:.0f} examples/s" if meter.rate else "nothing to train"
    return f"epoch {epoch} of {epochs}: validation {'; '.join(words)} ({rate})"
