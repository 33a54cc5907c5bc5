"""What the benchmark found, as ``benchmark.md`` and on the terminal."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from experiments.benchmarks.judges import Outcome, Sample, spread, title
from mtl_jax.core.console import Terminal
from mtl_jax.studies.report.document import (
    Bullets,
    Cell,
    Code,
    Document,
    Heading,
    Paragraph,
    Row,
    Table,
)
from mtl_jax.studies.stats.formatting import MISSING, byte_size, fixed

_DEFINITIONS = (
    "The two sides run in turn, each in a process of its own that stays alive and has been "
    "warmed up by a short run of the same scenario. Both read the same sentences, checkpoint and "
    "settings.",
    "A whole run is everything from reading the data to the test metrics: tokenising, batching, "
    "training, the validation split after each epoch, the test split at the end. Ours also "
    "keeps what frozen layers compute, writes checkpoints, and measures the training split at the "
    "end; "
    "what XLA took to compile is left out of it, and is in the second table.",
    "A whole process is everything from the command to its exit: imports, data, compiling, "
    "training, the validation split after each epoch, the best checkpoint on the disk, the test "
    "split with it. A run of one epoch has filled the caches of both sides, of texts, tokens and "
    "compiled programs, before.",
    "Training steps: batching, forward, backward and update. Ours has in it the one pass in which "
    "frozen layers see the training sentences.",
    "Seeds at once are compared by their training steps: evaluation and checkpoints, which go seed "
    "by seed and so take eight times as long for eight, are in the whole run only. Macro-F1 and "
    "optimizer state are those of the first seed.",
    "PyTorch: transformers' `BertModel` with its default attention, dynamic padding to the "
    "longest sentence of a batch, batches grouped by length as `group_by_length` does, frozen "
    "parameters with `requires_grad=False`, AdamW over the others; not compiled; a "
    "checkpoint, its `state_dict`, only where it is a whole process.",
    "Useful FLOPs count the matrix products of real tokens only, neither padding nor "
    "recomputation: a forward pass of L layers over n tokens in texts of l tokens is "
    "L (2 n (4 h² + 2 h i) + 4 h Σ l²) with hidden size h and intermediate size i; a step of "
    "`none_frozen` is three times that. They are divided by the seconds of the training steps.",
    "The peak is the fastest of several float32 matrix products under `jax.jit`, each the median "
    "of its repeats, measured in the same run.",
)


@dataclasses.dataclass(frozen=True)
class Circumstances:
    """How a benchmark was made.

    Attributes:
        command: The command line.
        machine: Processor, cores and devices.
        load: Runnable threads before the start, averaged over a minute.
        date: When, ISO 8601.
        versions: Of each package.
        repeats: Of each measurement.
        data: Name of the corpus.
        backbone: Name of the checkpoint.
        batch_size: Sentences in a step.
    """

    command: str
    machine: str
    load: float
    date: str
    versions: Mapping[str, str]
    repeats: int
    data: str
    backbone: str
    batch_size: int


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """The medians, their ratio, and whether the goal is reached."""
    rows = tuple(
        Row(
            (
                Cell(outcome.name),
                Cell(outcome.about),
                outcome.measured,
                outcome.against,
                Cell(f"{fixed(outcome.value, 3 if outcome.value < 1 else 2)}{outcome.unit}"),
                Cell(outcome.goal.text(outcome.unit) if outcome.goal else MISSING),
                Cell(outcome.verdict),
            )
        )
        for outcome in outcomes
    )
    columns = ("row", "what", "measured", "against", "ratio", "goal", "verdict")
    return Table("Medians (smallest–largest)", columns, rows)


def sample_table(records: Sequence[Sample]) -> Table:
    """Everything that was measured on each side, before it is compared.

    Args:
        records: Lines of ``benchmark.jsonl`` that are trainings.
    """
    runs: dict[tuple[str, str], list[Sample]] = {}
    for record in records:
        kind = f"{title(record)}{', alone in its process' if record['job']['fresh'] else ''}"
        runs.setdefault((kind, record["side"]), []).append(record)
    columns = ("training", "side", "whole run", "training steps", "compiled in", "macro-F1")
    columns = (*columns, "optimizer state")
    rows = []
    for (kind, side), samples in runs.items():
        clocks = [
            spread([sample[key] for sample in samples], "s") for key in ("seconds", "train_seconds")
        ]
        # Only the first repeat compiles.
        compiled = max(sample["compile_seconds"] for sample in samples)
        texts = (
            f"{fixed(compiled, 1)} s" if compiled else MISSING,
            fixed(statistics.median(sample["macro_f1"] for sample in samples)),
            byte_size(samples[0]["optimizer_state_bytes"]),
        )
        rows.append(Row((Cell(kind), Cell(side), *clocks, *(Cell(text) for text in texts))))
    note = "Macro-F1: of the test split, the mean over tasks."
    return Table("Each training: medians (smallest–largest)", columns, tuple(rows), note)


def build(
    outcomes: Sequence[Outcome],
    notes: Sequence[str],
    records: Sequence[Mapping[str, Any]],
    circumstances: Circumstances,
) -> Document:
    """The document of ``benchmark.md``.

    Args:
        outcomes: The lines of the table.
        notes: What to know of the run: rows that were skipped or failed, in words.
        records: The lines of ``benchmark.jsonl``.
        circumstances: How they were made.
    """
    trainings = [record for record in records if "train_seconds" in record]
    versions = ", ".join(f"{name} {text}" for name, text in circumstances.versions.items())
    facts = (
        f"Machine: {circumstances.machine}, load {circumstances.load:.1f} at the start",
        f"Versions: {versions}",
        f"Checkpoint `{circumstances.backbone}`, data `{circumstances.data}`, batches of "
        f"{circumstances.batch_size}, float32",
        f"Repeats: {circumstances.repeats}",
    )
    blocks = (
        *((outcome_table(outcomes),) if outcomes else ()),
        *(Paragraph(note, "warning") for note in notes),
        *((sample_table(trainings),) if trainings else ()),
        Heading("How it was measured"),
        Code(circumstances.command),
        Bullets(facts + _DEFINITIONS),
    )
    return Document("Benchmark", circumstances.date, blocks)


def print_table(
    outcomes: Sequence[Outcome], notes: Sequence[str], console: Console | None = None
) -> None:
    """Prints the table of outcomes, and what was skipped or failed.

    Args:
        outcomes: The lines of the table.
        notes: Rows that were skipped or failed, in words.
        console: Where to print; standard output by default.
    """
    console = console or Terminal()
    drawn = RichTable(title="Medians", title_justify="left", box=SIMPLE_HEAD)
    table = outcome_table(outcomes)
    shown = [index for index, column in enumerate(table.columns) if column != "what"]
    for index in shown:
        drawn.add_column(table.columns[index], justify="right" if index else "left")
    styles = {"missed": "red", "reached": "green"}
    for row in table.rows:
        cells = [row.cells[index].text for index in shown]
        drawn.add_row(*map(Text, cells), style=styles.get(cells[-1]))
    if outcomes:
        console.print(drawn)
    for note in notes:
        console.print(Text(note.replace("`", ""), style="yellow"))
