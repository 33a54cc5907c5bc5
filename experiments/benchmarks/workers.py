"""What the benchmark's worker processes run, and the processes themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from experiments.benchmarks.cases import Job
from experiments.benchmarks.judges import OURS, forward_flops
from mtl_jax.config.optimizer import head_weight_decay
from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.startup import prepare

_PRODUCTS = 7


def _sample(config: TrainConfig, lengths: Any, result: Mapping[str, Any]) -> dict[str, Any]:
    """What both sides say of a training.

    Args:
        config: Its settings.
        lengths: int [n], tokens of each training text.
        result: ``seconds``, ``compile_seconds``, ``train_seconds``, ``optimizer_state_bytes``
            and ``test``.
    """
    from mtl_jax.models.pretrained import load_config
    from mtl_jax.training.metrics import mean_score

    bert = load_config(Path(config.backbone))
    sizes = bert.hidden_size, bert.intermediate_size, bert.num_hidden_layers
    kept = ("seconds", "compile_seconds", "train_seconds", "optimizer_state_bytes")
    return {
        "scenario": config.name,
        "epochs": config.epochs,
        "train_examples": len(lengths),
        "batch_size": config.batch_size,
        "tokens": int(lengths.sum()),
        "forward_flops": forward_flops(lengths, *sizes, gated=bert.gated_mlp),
        **{name: result[name] for name in kept},
        "macro_f1": mean_score(result["test"]),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def _train(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """A training through the package's public call, in a new folder."""
    from mtl_jax.runs.loop import train
    from mtl_jax.training.inputs import Inputs

    del job, platform
    with tempfile.TemporaryDirectory(dir=config.workdir) as folder:
        # What an earlier repeat has kept of the frozen layers must not be found again.
        own = {"workdir": f"{folder}/run", "cache_folder": f"{folder}/activations"}
        config = dataclasses.replace(config, **own)
        started = time.perf_counter()
        inputs = Inputs(config)
        result = train(config, inputs)
        seconds = time.perf_counter() - started - result["compile_seconds"]
    test = result["test"] or result["validation"]
    lengths = inputs.split("train").texts.tokens.lengths
    return _sample(config, lengths, {**result, "seconds": seconds, "test": test})


def _pytorch(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """The same training in plain PyTorch."""
    from experiments.benchmarks.pytorch_baseline import fine_tune

    del job
    result = fine_tune(config, _torch_device(platform))
    return _sample(config, result["lengths"], {**result, "compile_seconds": 0.0})


def _torch_device(platform: str) -> str:
    return {"gpu": "cuda"}.get(platform, platform)


def _extract(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """The vectors of the training sentences by the checkpoint as it is, once it is loaded."""
    from mtl_jax.data.corpus import load_corpus
    from mtl_jax.tools.text_encoder import load_text_encoder

    del platform
    texts = list(load_corpus(config.data).read("train").texts)
    length = config.data.max_length
    encoder = load_text_encoder(config.backbone, None, length, dtype=job.dtype)
    started = time.perf_counter()
    count = sum(len(vectors) for _, vectors in encoder.pooled(texts))
    seconds = time.perf_counter() - started
    compiled = encoder.compile_seconds
    return {"sentences": count, "seconds": seconds, "compile_seconds": compiled}


def _sentence_transformers(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """The same vectors by sentence-transformers."""
    import sentence_transformers  # pyright: ignore[reportMissingImports]  (optional)

    from mtl_jax.data.corpus import load_corpus

    texts = list(load_corpus(config.data).read("train").texts)
    encoder = sentence_transformers.SentenceTransformer(
        config.backbone, device=_torch_device(platform), model_kwargs={"dtype": job.dtype}
    )
    encoder.max_seq_length = config.data.max_length
    started = time.perf_counter()
    count = len(encoder.encode(texts, show_progress_bar=False))
    seconds = time.perf_counter() - started
    return {"sentences": count, "seconds": seconds, "compile_seconds": 0.0}


def _peak(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """The fastest float32 matrix product: a large square, and those of a layer."""
    import jax
    import jax.numpy as jnp

    from mtl_jax.models.pretrained import load_config

    del job, platform
    bert = load_config(Path(config.backbone))
    hidden, inner = bert.hidden_size, bert.intermediate_size
    products = [(2048, 2048, 2048)]
    for tokens in (1024, 4096):
        products += [(tokens, hidden, inner), (tokens, inner, hidden), (tokens, hidden, hidden)]
    multiply = jax.jit(jnp.matmul)
    rates = {}
    for rows, inside, columns in products:
        left, right = jnp.ones((rows, inside)), jnp.ones((inside, columns))
        multiply(left, right).block_until_ready()
        seconds = []
        for _ in range(_PRODUCTS):
            started = time.perf_counter()
            multiply(left, right).block_until_ready()
            seconds.append(time.perf_counter() - started)
        name = f"{rows} x {inside} x {columns}"
        rates[name] = 2 * rows * inside * columns / statistics.median(seconds)
    return {"flops_per_second": max(rates.values()), "products": rates}


@functools.lru_cache(maxsize=1)
def _with_features(config: TrainConfig) -> Any:
    """Inputs that hold the frozen backbone's vectors of every split."""
    from mtl_jax.runs.phase_run import PhaseRun
    from mtl_jax.training.inputs import Inputs

    inputs = Inputs(config)
    run = PhaseRun(config, inputs)
    for name in inputs.corpus.splits:
        run.split(name)
    return inputs


def _heads(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """As many seeds times as many learning rates as make ``variants`` pairs of heads."""
    import numpy as np

    from mtl_jax.runs.head_sweep import Grid, sweep

    del platform
    side = math.isqrt(job.variants)
    rates = np.geomspace(1e-3, 1e-2, side).tolist()
    weights = tuple((task, (weight,)) for task, weight in config.weights.items())
    inputs = _with_features(config)
    decay = config.weight_decay
    if decay is None:
        decay = head_weight_decay(len(inputs.split("train").texts))
    grid = Grid(tuple(range(side)), tuple(rates), (decay,), weights)
    started = time.perf_counter()
    result = sweep(config, grid, inputs)
    return {"seconds": time.perf_counter() - started - result.compile_seconds}


def _seeds(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """Trainings with the seeds from 0 to ``job.variants``, at once, each in a new folder."""
    from mtl_jax.core.errors import UserError
    from mtl_jax.runs.loop import train_seeds
    from mtl_jax.training.inputs import Inputs

    del platform
    with tempfile.TemporaryDirectory(dir=config.workdir) as folder:
        # What an earlier repeat has kept of the frozen layers must not be found again.
        config = dataclasses.replace(config, cache_folder=f"{folder}/activations")
        configs = [
            dataclasses.replace(config, seed=seed, workdir=f"{folder}/seed{seed}")
            for seed in range(job.variants)
        ]
        started = time.perf_counter()
        inputs = Inputs(config)
        results = []
        for outcome in train_seeds(configs, inputs):
            if isinstance(outcome, UserError):
                raise outcome
            results.append(outcome)
        seconds = time.perf_counter() - started
    # Each has an equal share of what all took.
    total = {key: sum(r[key] for r in results) for key in ("compile_seconds", "train_seconds")}
    test = results[0]["test"] or results[0]["validation"]
    measured = {**results[0], **total, "seconds": seconds - total["compile_seconds"], "test": test}
    lengths = inputs.split("train").texts.tokens.lengths
    return {**_sample(config, lengths, measured), "seeds": job.variants}


def _spread(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """A training in processes of its own, each with ``job.devices``, started by the launcher."""
    from mtl_jax.runs.workdir import Workdir
    from mtl_jax.training.inputs import Inputs

    del platform
    with tempfile.TemporaryDirectory(dir=config.workdir) as folder:
        place = [f"--tasks={job.processes}", f"--devices-per-task={job.devices}"]
        limits = {
            "max-train-examples": config.data.max_train_examples,
            "max-validation-examples": config.data.max_validation_examples,
            "max-test-examples": config.data.max_test_examples,
        }
        flags = {
            **limits,
            "backbone": config.backbone,
            "scenario": config.scenario,
            "epochs": config.epochs,
            "batch-size": config.batch_size,
            "workdir": f"{folder}/run",
        }
        words = [f"--{name}={value}" for name, value in flags.items()]
        launch = [sys.executable, "-m", "mtl_jax.launch", "local", *place, "--", "train", *words]
        started = time.perf_counter()
        subprocess.run(launch, check=True, capture_output=True)  # noqa: S603  (no shell reads it)
        seconds = time.perf_counter() - started
        result = Workdir(f"{folder}/run").metrics.records()[-1]
    lengths = Inputs(config).split("train").texts.tokens.lengths
    test = result["test"] or result["validation"]
    seconds -= result["compile_seconds"]
    return _sample(config, lengths, {**result, "seconds": seconds, "test": test})


def _whole_run(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """A training as a process, from its start to its end."""
    from experiments.benchmarks.whole_runs import whole_run

    del job, platform
    return _of_process(config, whole_run(config))


def _pytorch_whole_run(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """The same training in plain PyTorch."""
    from experiments.benchmarks.whole_runs import pytorch_whole_run

    del job
    return _of_process(config, pytorch_whole_run(config, _torch_device(platform)))


def _of_process(config: TrainConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """What both sides say of a training that was a process."""
    from mtl_jax.training.inputs import Inputs

    test = found["test"] or found["validation"]
    lengths = Inputs(config).split("train").texts.tokens.lengths
    clock = {name: found[name] for name in ("cpu_seconds", "peak_bytes")}
    return {**_sample(config, lengths, {**found, "test": test}), **clock}


def _start_again(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """A second start of a finished run."""
    from experiments.benchmarks.whole_runs import start_again

    del job, platform
    found = start_again(config)
    return {name: found[name] for name in ("seconds", "cpu_seconds", "first_seconds")}


def _go_on(config: TrainConfig, job: Job, platform: str) -> dict[str, Any]:
    """A second start of a run that was killed."""
    from experiments.benchmarks.whole_runs import go_on

    del job, platform
    return go_on(config)


MEASUREMENTS: Mapping[str, Callable[[TrainConfig, Job, str], dict[str, Any]]] = {
    "train": _train,
    "pytorch": _pytorch,
    "extract": _extract,
    "sentence_transformers": _sentence_transformers,
    "peak": _peak,
    "heads": _heads,
    "seeds": _seeds,
    "spread": _spread,
    "whole_run": _whole_run,
    "pytorch_whole_run": _pytorch_whole_run,
    "start_again": _start_again,
    "go_on": _go_on,
}
"""Run in a worker process with settings, the ``Job`` and the platform that jax uses.

All but ``peak`` give ``seconds``, those of trainings without compilation unless whole processes are
measured, and trainings what ``_sample`` adds.
"""


def measure(measurement: str, *arguments: Any) -> dict[str, Any]:
    """Runs one of ``MEASUREMENTS``; what it prints on standard error is not shown."""
    with contextlib.redirect_stderr(io.StringIO()):
        return MEASUREMENTS[measurement](*arguments)


def device() -> tuple[str, str]:
    """The platform that jax uses, and its devices in words."""
    import jax

    return jax.default_backend(), f"{jax.device_count()} x {jax.devices()[0].device_kind}"


class Workers:
    """A process for jax and one for PyTorch, started when they are first needed."""

    def __init__(self) -> None:
        self._pools: dict[str, ProcessPoolExecutor] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools.values():
            pool.shutdown()

    def call(self, side: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs ``function`` in the process of ``side``; a dead one is replaced at the next call."""
        if side not in self._pools:
            self._pools[side] = _pool(side)
        try:
            return self._pools[side].submit(function, *arguments).result()
        except BrokenExecutor:
            del self._pools[side]
            raise

    @staticmethod
    def call_fresh(side: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs ``function`` in a process that does nothing else."""
        with _pool(side) as pool:
            return pool.submit(function, *arguments).result()


def _pool(side: str) -> ProcessPoolExecutor:
    # Forking a process that has threads, as jax and PyTorch start them, can hang the child.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=prepare if side == OURS else None)
