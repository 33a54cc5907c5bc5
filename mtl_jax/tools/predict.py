"""A finished run's folder, or a bare checkpoint, put to use on new texts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.config.data import DataConfig, LongTexts
from mtl_jax.config.model import Pooling
from mtl_jax.config.tasks import Task
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, shortened
from mtl_jax.core.prefetch import ahead
from mtl_jax.data.batches import HostBatch, TextSet
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.examples import Examples
from mtl_jax.data.kinds import KINDS as LABELS
from mtl_jax.data.packing.plan import Layout
from mtl_jax.data.pairs import Pair
from mtl_jax.freezing.partition import Params
from mtl_jax.models.encoder import load_encoder
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.sentence_transformers import left_out
from mtl_jax.models.tokenizer import load_tokenizer
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.run_config import identity, model_spec, read_record, recorded_tasks
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.evaluator import ModelSpec, evaluator
from mtl_jax.training.inputs import Split, standardised
from mtl_jax.training.kinds.base import Metrics
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.text_reader import TextReader

# Texts in memory at a time, while as many wait; enough for the packing to leave little padding.
CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class _Chunk:
    lines: list[str]
    texts: TextSet
    batches: list[HostBatch]


class TextEncoder:
    """Texts, or pairs of them, to pooled vectors.

    The next texts are read, tokenised and laid out while the device has those before.

    Attributes:
        reader: Tokenises the texts.
        width: Length of a vector.
        tasks: The tasks by name, of a run.
        cut: Texts so far that were longer than the model's positions or ``max_length``.
        empty: Texts so far with no token of their own.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Params,
        reader: TextReader,
        tasks: Mapping[str, Task] | None = None,
        layer: int | None = None,
    ):
        """Compiles nothing yet.

        Args:
            spec: The model.
            params: Its parameters.
            reader: Tokenises the texts.
            tasks: The tasks by name, of a run.
            layer: Whose token states ``pooled`` pools: 0 the embeddings, k the k-th layer; by
                default the last one.

        Raises:
            UserError: There is no such layer, or the pooler does not fit it.
        """
        layers = spec.bert.num_hidden_layers
        if layer is not None and not 0 <= layer <= layers:
            raise UserError(
                f"--layer {layer}: the encoder has {layers} layers: use 0, its embeddings, to "
                f"{layers}, the last one"
            )
        if layer not in (None, layers) and spec.pooling == "pooler":
            raise UserError(
                f"--layer {layer}: the checkpoint's pooler is for the last layer, {layers}: add "
                "--pooling mean or cls"
            )
        self.reader = reader
        # A batch has room for the labels of a task at least.
        self.tasks = tasks or {name: Task(name) for name, _ in spec.classes}
        self.width = spec.bert.hidden_size
        self._depth = None if layer in (None, layers) else 1 + layer
        self.cut = self.empty = 0
        self._evaluator = evaluator(spec)
        self._params = self._evaluator.runner.replicate(params)

    @property
    def layout(self) -> Layout:
        """The shape of the batches."""
        return self._evaluator.layout

    @property
    def compile_seconds(self) -> float:
        """What compiling took so far."""
        return self._evaluator.compile_seconds

    def _read(self, lines: Iterable[str]) -> Iterator[_Chunk]:
        lines, first = iter(lines), 1
        while chunk := list(itertools.islice(lines, CHUNK)):
            blank = {
                name: LABELS[task.kind].blank(len(chunk), len(task.classes))
                for name, task in self.tasks.items()
            }
            origin = f"lines {first} to {first + len(chunk) - 1}"
            texts = self.reader(chunk, standardised(blank, self.tasks), origin)
            if first == 1 and len(chunk) == CHUNK:
                self._evaluator = self._evaluator.fitted(texts.tokens.lengths)
            yield _Chunk(chunk, texts, list(self._evaluator.batches(texts)))
            first += len(chunk)

    def _chunks(self, lines: Iterable[str]) -> Iterator[_Chunk]:
        for chunk in ahead(self._read(lines)):
            self.cut += chunk.texts.tokens.truncated
            self.empty += chunk.texts.tokens.empty
            yield chunk

    def pooled(self, texts: Iterable[str]) -> Iterator[tuple[list[str], np.ndarray]]:
        """Chunk by chunk ``texts``, k of them, and their vectors, float32 [k, hidden].

        Raises:
            UserError: A text is too long, where these are refused.
        """
        for chunk in self._chunks(texts):
            yield (
                chunk.lines,
                self._evaluator.pooled(self._params, chunk.texts, chunk.batches, self._depth),
            )


class Predictor(TextEncoder):
    """The best checkpoint of a run, loaded from its folder.

        answers = mtl.Predictor("runs/mine").predict(["a text"])
        answers[0]["topic"]["label"]

    A model for pairs of texts takes pairs: ``predict([("a premise", "a hypothesis")])``.

    Attributes:
        folder: The folder of the run.
        classes: For each task the names of its classes; none for a regression.
        text_columns: The column of the texts that it was trained on, or the two columns of
            pairs; None if they differ between tasks.
        columns: The names of all columns that it was trained on.
    """

    def __init__(
        self,
        folder: str | Path,
        long_texts: LongTexts | None = None,
        *,
        trust: Sequence[str] = (),
        layer: int | None = None,
        pooling: Pooling | None = None,
    ):
        """Loads the checkpoint.

        Args:
            folder: The folder of the run.
            long_texts: What to do with texts that are longer than those of the training; by default
                as in the training.
            trust: The modules with a user's own code that may be imported, if the folder names any.
            layer: The layer whose states ``pooled`` returns; by default the last.
            pooling: How its token vectors become one vector; by default as in the training, which
                predictions need.

        Raises:
            UserError: The folder has no finished checkpoint of a run, or it names code of a module
                that is not trusted.
        """
        workdir = Workdir(folder)
        self.folder = workdir.path
        record = self._record = read_record(workdir, "train one there first")
        workdir.check_tokenizer(record["tokenizer_sha256"])
        # First: all that is built from the record below is what the checkpoint was saved with.
        params = best_parameters(workdir)
        settings = record["settings"]
        tasks = recorded_tasks(record, str(workdir.path))
        self.classes: dict[str, tuple[str, ...]] = {
            name: task.classes for name, task in tasks.items()
        }
        self._data = DataConfig(**settings["data"])
        origins = self._data.origins
        texts = {origin.text_columns for origin in origins}
        self.text_columns = next(iter(texts)) if len(texts) == 1 else None
        self.columns = {column for columns in texts for column in columns}
        self.columns |= {column for labels in origins.values() for column in labels.values()}
        reader = TextReader(
            load_tokenizer(workdir.tokenizer, "train one anew from its checkpoint"),
            EncoderConfig(**record["bert"]),
            self._data.max_length,
            long_texts or self._data.long_texts,
            "shorten them, train with a larger --max-length",
            pairs=bool(self._data.pair_columns),
        )
        spec = model_spec(
            record,
            str(workdir.path),
            trust,
            max_length=reader.max_length,
            parallel=(settings | record["environment"]["limits"])["parallel"],
            like=_layout(record["environment"].get("layout")),
        )
        if pooling is not None:
            spec = dataclasses.replace(spec, pooling=_fitting(pooling, params, str(workdir.path)))
        super().__init__(spec, params, reader, tasks, layer)

    def evaluate(self, split: str) -> Metrics:
        """The metrics of a split of the data that the run was trained on.

        Raises:
            UserError: The data are gone, have other classes now, or a text that is too long.
        """
        return self.measure(split)[0]

    def measure(
        self, split: str
    ) -> tuple[Metrics, Examples, dict[str, np.ndarray], tuple[str, ...]]:
        """As ``evaluate``, with what the metrics come from.

        Returns:
            The metrics; the examples; per task their logits, float32 [n, outputs]; and the names
            of the data sets.

        Raises:
            UserError: As of ``evaluate``.
        """
        corpus = load_corpus(self._data)
        kinds = {name: task.kind for name, task in self.tasks.items()}
        if dict(corpus.classes) != self.classes or corpus.kinds != kinds:
            raise UserError(
                f"{corpus.name} has other classes now than when the model was trained: "
                "give it the data it was trained on"
            )
        if corpus.fingerprint != self._record["data"]["fingerprint"]:
            say(f"note: {corpus.name} has changed since the model was trained on it")
        examples = corpus.read(split)
        texts = self.reader(examples.texts, standardised(examples.labels, self.tasks), split)
        for note in self.reader.cut(texts, split):
            say(note)
        metrics, logits = self._evaluator.measure(
            self._params, Split(examples, texts), self.classes
        )
        return metrics, examples, logits, corpus.sources

    def predict(self, texts: Iterable[str | Sequence[str]]) -> list[dict[str, Any]]:
        """Returns ``{"text", task: answer ...}`` for each text.

        An answer is ``{"label", "probability"}`` for a single label; ``{"labels",
        "probabilities"}`` for several labels, with the probability of every class by its name and
        as labels the classes with a probability of at least 0.5; and ``{"value"}`` for a
        regression, in the unit of the labels.

        Args:
            texts: Texts, or pairs of two texts.

        Raises:
            UserError: A text is too long, and long texts are refused.
        """
        return list(self.answers(texts))

    def answers(self, texts: Iterable[str | Sequence[str]]) -> Iterator[dict[str, Any]]:
        """Yields what ``predict`` returns, while the texts are being read.

        Raises:
            UserError: A text is too long, and long texts are refused.
        """
        for lines, logits in self.logits(texts):
            yield from self.as_answers(lines, logits)

    def logits(
        self, texts: Iterable[str | Sequence[str]]
    ) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
        """Chunk by chunk the texts, k of them, and per task their logits, float32 [k, outputs].

        Raises:
            UserError: A text is too long, where these are refused.
        """
        for chunk in self._chunks(map(self._as_trained, texts)):
            yield chunk.lines, self._evaluator.logits(self._params, chunk.texts, chunk.batches)[0]

    def as_answers(
        self, lines: Sequence[str], logits: Mapping[str, np.ndarray]
    ) -> Iterator[dict[str, Any]]:
        """What ``predict`` gives of texts with these logits."""
        found = {
            name: KINDS[task.kind].answers(logits[name], task) for name, task in self.tasks.items()
        }
        for i, text in enumerate(lines):
            shown = [text.first, text.second] if isinstance(text, Pair) else text
            yield {"text": shown, **{name: of_task[i] for name, of_task in found.items()}}

    def metrics_of(
        self,
        examples: Examples,
        logits: Mapping[str, np.ndarray],
        losses: Mapping[str, float | None],
    ) -> Metrics:
        """The metrics of examples with these logits and mean losses; see ``evaluate``."""
        return self._evaluator.metrics_of(examples, logits, losses, self.classes)

    def kept(self, split: str) -> Path | None:
        """The predictions on a split that the run has left; None where there are none."""
        path = self.folder / f"predictions-{split}.parquet"
        return path if path.exists() else None

    def pooled(
        self, texts: Iterable[str | Sequence[str]]
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """See ``TextEncoder``."""
        return super().pooled(map(self._as_trained, texts))

    def _as_trained(self, text: str | Sequence[str]) -> str:
        """A text or a pair, whichever the model was trained on.

        Raises:
            UserError: It is the other one.
        """
        if not isinstance(text, str):
            if len(text) != 2 or not all(isinstance(each, str) for each in text):
                raise UserError(f"{text!r} is neither a text nor a pair of texts: give it one")
            text = Pair(*text)
        columns = self.text_columns
        if columns is not None and len(columns) != 1 + isinstance(text, Pair):
            wanted = "single texts" if len(columns) == 1 else "pairs of texts"
            raise UserError(
                f"the model was trained on {wanted}, and {shortened(str(text), 60)!r} is "
                f"{'a pair' if isinstance(text, Pair) else 'one text'}: see --text-columns"
            )
        return text


def _fitting(pooling: Pooling, params: Params, folder: str) -> Pooling:
    if pooling == "pooler" and "pooler" not in params["backbone"]:
        raise UserError(f"{folder} was trained without a pooler: use --pooling mean or cls")
    return pooling


def best_parameters(workdir: Workdir) -> Params:
    """The parameters of the best checkpoint of a run.

    Raises:
        UserError: There is none, or it is not what the run has saved.
    """
    if workdir.checkpoints_removed:
        raise UserError(
            f"{workdir.path} is done and its checkpoints have been removed: run the study in a "
            "new folder with --keep-checkpoints"
        )
    end, saved = _end(workdir), CheckpointReader(workdir.checkpoints, identity(workdir.config()))
    if end is not None and saved.last_step != end:
        raise UserError(
            f"{workdir.path} is done, but its last checkpoint, {end}, is lost: run train again on "
            "its --workdir, which recreates it"
        )
    if (params := saved.restore_best()) is None:
        raise UserError(f"{workdir.path} has no checkpoint yet: run train again on its --workdir")
    return params


def _end(workdir: Workdir) -> int | None:
    """The last step of a finished run; None where it is not known to be one."""
    try:
        result = workdir.result()
    except UserError:
        # Of a damaged log nothing is needed here; train makes up for it.
        return None
    return result["step"] if result else None


def _layout(recorded: dict[str, Any] | None) -> Layout | None:
    """The layout that a run has recorded, so that its own texts give its numbers again."""
    if recorded is None:
        return None
    return Layout(**{**recorded, "blocks": tuple(map(tuple, recorded["blocks"]))})


def checkpoint_encoder(
    backbone: str,
    pooling: Pooling | None,
    max_length: int,
    long_texts: LongTexts = "cut",
    layer: int | None = None,
) -> TextEncoder:
    """The encoder of a pre-trained checkpoint, as ``all_frozen`` sees it.

    Raises:
        UserError: The checkpoint can't be used, or max_length leaves no room for a text.
    """
    encoder = load_encoder(backbone, pooling)
    reader = TextReader(encoder.tokenizer, encoder.config, max_length, long_texts)
    for note in (*encoder.notes, *left_out(encoder.folder, vectors=True)):
        say(f"note: {note}")
    # Vectors are made without a head.
    spec = ModelSpec(
        encoder.config, (("unused", 1),), encoder.pooling, "float32", reader.max_length, "auto"
    )
    return TextEncoder(spec, {"backbone": encoder.params}, reader, layer=layer)
