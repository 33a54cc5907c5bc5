"""Steps on one GPU, on synthetic texts that fill their rows, beside PyTorch's.

    python -m experiments.benchmarks --gpu --workdir DIR        # some minutes on one card

Both sides train an encoder with random weights in bfloat16: ours with what ``train`` compiles,
PyTorch's ``BertModel`` under ``torch.compile`` with its scaled dot-product attention and autocast.
Dropout of the attention weights is 0 on both sides, so that both attend in one kernel. It has not
run on a card yet; elsewhere a row says "not run".
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.benchmarks.judges import Goal, Outcome, forward_flops, spread
from mtl_jax.core.command_line import one_line
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.studies.report.document import Cell
from mtl_jax.studies.stats.formatting import MISSING

NOT_RUN = "not run"
# Dense bfloat16 products, FLOPs a second, from the makers' data sheets, by a part of the name: the
# first that fits.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "A100": 312e12,
}
_TASK = "label"
_CLASSES = 4

Step = tuple[Callable[[], Any], Callable[[Any], Any]]
"""Takes a step, and waits for what it gives."""

# Steps before those that are measured.
_WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What the rows are measured on.

    Attributes:
        base: The larger encoder.
        small: The one of which several seeds are trained at once.
        length: Tokens of every text.
        rows: Texts in a step of the larger one.
        small_rows: Texts in a step of the smaller one.
        trained: How many of the top layers the cached row trains.
        seeds: How many are trained at once.
        steps: Steps between two looks at the clock.
        looks: Such looks.
    """

    base: EncoderConfig
    small: EncoderConfig
    length: int
    rows: int
    small_rows: int
    trained: int
    seeds: int
    steps: int = 10
    looks: int = 10


def _encoder(layers: int, hidden: int, heads: int, vocabulary: int, length: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=length,
        attention_probs_dropout_prob=0.0,
    )


SHAPES: Mapping[str, Shapes] = {
    # BERT-base; all-MiniLM-L6.
    "full": Shapes(
        _encoder(12, 768, 12, 30_522, 512), _encoder(6, 384, 12, 30_522, 512), 128, 64, 32, 2, 8
    ),
    # To try the rows themselves on anything.
    "tiny": Shapes(_encoder(2, 32, 4, 50, 16), _encoder(1, 16, 4, 50, 16), 8, 4, 2, 1, 2, 1, 2),
}


@dataclasses.dataclass(frozen=True)
class GpuRow:
    """A row of the table.

    Attributes:
        about: What is measured, and against what.
        goal: What the number should be.
        unit: What it is written with.
    """

    about: str
    goal: Goal
    unit: str = "×"


ROWS: Mapping[str, GpuRow] = {
    "compiled": GpuRow("`none_frozen` step against torch.compile, as fast as", Goal(low=1.1)),
    "flops": GpuRow("`none_frozen` step, share of the card's peak", Goal(low=45), " %"),
    "cached": GpuRow("`top_2` step from kept states, against a full step", Goal(low=5)),
    "seeds": GpuRow("step of 8 seeds at once, against one seed", Goal(high=2)),
    "evaluation": GpuRow("evaluation, share of the card's peak", Goal(low=50), " %"),
}


class GpuSession:
    """Measures rows; what several of them need is measured once.

    Args:
        shapes: What on.
        peak: FLOPs a second of the device; None where they are not known.
    """

    def __init__(self, shapes: Shapes, peak: float | None):
        self._shapes, self._peak = shapes, peak

    def outcome(self, name: str) -> Outcome | None:
        """A line of the table; None where it can't be measured here."""
        row = ROWS[name]
        measured = {
            "compiled": self._against_pytorch,
            "flops": self._share_of_step,
            "cached": lambda: _faster(self._full, self._cached),
            "seeds": lambda: _faster(self._at_once, self._alone),
            "evaluation": self._share_of_evaluation,
        }[name]()
        if measured is None:
            return None
        value, own, against = measured
        return Outcome(f"gpu {name}", row.about, own, against, value, row.unit, row.goal)

    @functools.cached_property
    def _full(self) -> list[float]:
        shapes = self._shapes
        return self._timed(*training(shapes.base, shapes.rows, shapes.length))

    @functools.cached_property
    def _cached(self) -> list[float]:
        shapes = self._shapes
        return self._timed(
            *training(shapes.base, shapes.rows, shapes.length, f"top_{shapes.trained}")
        )

    @functools.cached_property
    def _alone(self) -> list[float]:
        shapes = self._shapes
        return self._timed(*training(shapes.small, shapes.small_rows, shapes.length))

    @functools.cached_property
    def _at_once(self) -> list[float]:
        shapes = self._shapes
        return self._timed(
            *training(shapes.small, shapes.small_rows, shapes.length, seeds=shapes.seeds)
        )

    def _timed(self, take: Callable[[], Any], wait: Callable[[Any], Any]) -> list[float]:
        """Seconds of a step: many are sent off before one is waited for, as in training."""
        for _ in range(_WARM_UP):
            wait(take())
        seconds, steps = [], self._shapes.steps
        for _ in range(self._shapes.looks):
            started = time.perf_counter()
            for _ in range(steps - 1):
                take()
            wait(take())
            seconds.append((time.perf_counter() - started) / steps)
        return seconds

    def _against_pytorch(self) -> tuple[float, Cell, Cell] | None:
        if importlib.util.find_spec("torch") is None:
            return None
        shapes = self._shapes
        return _faster(self._timed(*pytorch(shapes.base, shapes.rows, shapes.length)), self._full)

    def _share_of_step(self) -> tuple[float, Cell, Cell] | None:
        # Forward, and twice as much backward.
        return self._share(self._full, 3)

    def _share_of_evaluation(self) -> tuple[float, Cell, Cell] | None:
        shapes = self._shapes
        return self._share(self._timed(*evaluation(shapes.base, shapes.rows, shapes.length)), 1)

    def _share(self, seconds: list[float], passes: int) -> tuple[float, Cell, Cell] | None:
        if self._peak is None:
            return None
        base = self._shapes.base
        lengths = np.full(self._shapes.rows, self._shapes.length)
        sizes = base.hidden_size, base.intermediate_size, base.num_hidden_layers
        rate = passes * forward_flops(lengths, *sizes) / statistics.median(seconds)
        share = 100 * rate / self._peak
        return share, _milliseconds(seconds), Cell(f"{self._peak / 1e12:.0f} TFLOP/s")


def _faster(slow: list[float], fast: list[float]) -> tuple[float, Cell, Cell]:
    ratio = statistics.median(slow) / statistics.median(fast)
    return ratio, _milliseconds(fast), _milliseconds(slow)


def _milliseconds(seconds: list[float]) -> Cell:
    return spread([1e3 * each for each in seconds], "ms")


def peak_of(kind: str) -> float | None:
    """FLOPs a second of a device by its name; None where they are not known here."""
    return next((peak for name, peak in _PEAKS.items() if name in kind), None)


def outcomes(
    shape: str, names: tuple[str, ...] = tuple(ROWS)
) -> tuple[list[Outcome], list[str], int]:
    """Measures rows on the device that jax uses.

    Args:
        shape: A key of ``SHAPES``; ``full`` is measured on a GPU only.
        names: The rows.

    Returns:
        The lines of the table, of rows that were not run or failed a note, and how many failed.
    """
    import jax

    device = jax.devices()[0]
    on_gpu = device.platform == "gpu"
    found: list[Outcome] = []
    notes, failed = [], 0
    session = GpuSession(SHAPES[shape], peak_of(device.device_kind) if on_gpu else None)
    for name in names:
        try:
            outcome = session.outcome(name) if on_gpu or shape != "full" else None
        except Exception as error:  # noqa: BLE001  (one row must not take the others with it)
            failed += 1
            notes.append(f"`gpu {name}` failed: {one_line(error)}")
            continue
        if outcome is None:
            goal = ROWS[name].goal.text(ROWS[name].unit)
            notes.append(f"`gpu {name}`: {NOT_RUN} ({ROWS[name].about}; goal {goal})")
        else:
            found.append(outcome)
    return found, notes, failed


def training(
    config: EncoderConfig,
    rows: int,
    length: int,
    scenario: str = "none_frozen",
    seeds: int | None = None,
) -> Step:
    """A training step of ours.

    Args:
        config: The encoder's.
        rows: Texts in a step.
        length: Tokens of each.
        scenario: What trains; what is frozen below is read from kept states.
        seeds: How many are trained at once; None for one by itself.
    """
    import jax

    from mtl_jax.data.packing.plan import Layout
    from mtl_jax.freezing.partition import Partition
    from mtl_jax.freezing.scenarios import scenario_rules
    from mtl_jax.training.compiled_step import TrainSpec, compiled_step
    from mtl_jax.training.optimizer import OptimizerConfig
    from mtl_jax.training.weighting.registry import make_weighting

    spec, params = _model(config, length)
    rules = scenario_rules(scenario, config.num_hidden_layers, (_TASK,))
    partition = Partition.from_rules(params, rules, None, scenario)
    depth = partition.depth(config.num_hidden_layers)
    rates = (("head", 1e-3), ("backbone", 1e-4))
    compiled = compiled_step(
        TrainSpec(
            model=spec,
            partition=partition,
            optimizer=OptimizerConfig(rates, 10_000, 100, 0.01, 1.0),
            task_weights=(1.0,),
            weighting=make_weighting("fixed", 1),
            layout=Layout(rows, ((1, length),), 1),
            on_pooled=False,
            states_depth=depth,
            steps_at_once=1,
            remat=False,
            scan_layers=False,
            seeds=seeds,
        )
    )
    trainable, frozen = partition.split(params)
    count = seeds or 1
    states = [compiled.program.init(trainable, seed) for seed in range(count)]
    state, frozen = compiled.place(states, [frozen] * count)
    batches = [[_batch(config, rows, length, depth, seed)] for seed in range(count)]

    def step() -> Any:
        nonlocal state
        state, _ = compiled(state, frozen, None, batches)
        return state

    return step, jax.block_until_ready


def evaluation(config: EncoderConfig, rows: int, length: int) -> Step:
    """An evaluation step of ours, as of ``training``."""
    import jax

    from mtl_jax.training.step import eval_step

    spec, params = _model(config, length)
    step = jax.jit(functools.partial(eval_step, spec.model().clone(blocks=((1, length),))))
    held, batch = jax.device_put((params, _batch(config, rows, length)))
    return functools.partial(step, held, batch), jax.block_until_ready


def _model(config: EncoderConfig, length: int) -> tuple[Any, Any]:
    """A model with random weights, on the host."""
    import jax

    from mtl_jax.models.encoder_module import EncoderModule
    from mtl_jax.training.evaluator import ModelSpec
    from mtl_jax.training.program import stream

    spec = ModelSpec(config, ((_TASK, _CLASSES),), "mean", "bfloat16", length, parallel="jit")
    ids = np.zeros((1, length), np.int32)
    backbone = jax.jit(EncoderModule(config).init)(jax.random.key(0), ids)["params"]
    backbone = {name: tree for name, tree in backbone.items() if name != "pooler"}
    heads = spec.model().init_heads(stream(0, "heads"))
    return spec, jax.tree.map(np.asarray, {"backbone": backbone, **heads})


def _batch(
    config: EncoderConfig, rows: int, length: int, depth: int = 0, seed: int = 0
) -> dict[str, np.ndarray]:
    """A text in each row, as long as the row."""
    random = np.random.default_rng(seed)
    batch = {
        "segment_ids": np.ones((rows, length), np.int32),
        "position_ids": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        _TASK: random.integers(0, _CLASSES, (rows, 1)).astype(np.int32),
    }
    if depth:
        states = random.standard_normal((rows, length, config.hidden_size))
        return {**batch, "states": states.astype(np.float32)}
    ids = random.integers(0, config.vocab_size, (rows, length))
    return {**batch, "input_ids": ids.astype(np.int32)}


def pytorch(config: EncoderConfig, rows: int, length: int) -> Step:
    """PyTorch's step of full fine-tuning, as of ``training``."""
    import torch  # pyright: ignore[reportMissingImports]  (optional)
    from transformers import BertConfig, BertModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "attention_probs_dropout_prob",
    )
    theirs: Any = {name: getattr(config, name) for name in names}
    theirs = BertConfig(**theirs, attn_implementation="sdpa")  # pyright: ignore[reportCallIssue]
    encoder: Any = BertModel(theirs, add_pooling_layer=False)
    encoder = encoder.to(device).train()
    head = torch.nn.Linear(config.hidden_size, _CLASSES).to(device)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-4, fused=device == "cuda")
    batch = _batch(config, rows, length)
    ids = torch.tensor(batch["input_ids"], dtype=torch.int64, device=device)
    labels = torch.tensor(batch[_TASK][:, 0], dtype=torch.int64, device=device)

    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            pooled = encoder(ids).last_hidden_state.mean(1)
            logits = head(pooled)
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    # Without a card it would have to find a C++ compiler.
    compiled = torch.compile(loss_of) if device == "cuda" else loss_of

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = compiled(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss

    def wait(loss: torch.Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise FloatingPointError(MISSING)

    return step, wait
