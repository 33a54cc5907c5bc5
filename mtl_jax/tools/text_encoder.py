"""Texts to vectors, by the encoder of a run or of a bare checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.config.data import LongTexts
from mtl_jax.config.model import Dtype, Pooling
from mtl_jax.config.tasks import Task
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, require_type, shortened
from mtl_jax.core.prefetch import ahead
from mtl_jax.core.type_checks import refuse_arguments
from mtl_jax.data.batches import HostBatch, TextSet
from mtl_jax.data.kinds import KINDS as LABELS
from mtl_jax.data.packing.plan import Layout
from mtl_jax.data.pairs import Pair
from mtl_jax.freezing.partition import Params
from mtl_jax.models.encoder import load_encoder
from mtl_jax.models.sentence_transformers import left_out
from mtl_jax.training.evaluator import ModelSpec, evaluator
from mtl_jax.training.inputs import standardised
from mtl_jax.training.text_reader import TextReader

# Texts in memory at a time, while as many wait; enough for the packing to leave little padding.
CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class _Chunk:
    lines: list[str]
    texts: TextSet
    batches: list[HostBatch]


def refuse_other_texts(texts: Iterable[str | Sequence[str]]) -> None:
    """Refuses what is no list of texts, or would be taken for one letter by letter.

    Of a table the names of the columns would be taken.

    Raises:
        UserError: It is a text, a table, or nothing to go through.
    """
    if isinstance(texts, str):
        raise UserError(f"{shortened(texts, 60)!r} is one text: give a list of texts")
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):
        raise UserError(
            f"the texts have the type {type(texts).__name__}: give one of its columns, such as "
            'table["text"]'
        )
    require_type(texts, Iterable, "the list of texts", "give a list of texts")


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

    def _as_text(self, given: str | Sequence[str]) -> str:
        """A text, or a pair as one.

        Raises:
            UserError: It is neither.
        """
        if isinstance(given, str):
            return given
        pair = isinstance(given, Sequence) or hasattr(given, "__array__")
        if not (pair and len(given) == 2 and all(isinstance(each, str) for each in given)):
            raise UserError(f"{given!r} is neither a text nor a pair of texts: give it one")
        return Pair(*given)

    def _read(self, lines: Iterable[str | Sequence[str]]) -> Iterator[_Chunk]:
        lines, first = map(self._as_text, lines), 1
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

    def _chunks(self, lines: Iterable[str | Sequence[str]]) -> Iterator[_Chunk]:
        refuse_other_texts(lines)
        for chunk in ahead(self._read(lines)):
            self.cut += chunk.texts.tokens.truncated
            self.empty += chunk.texts.tokens.empty
            yield chunk

    def pooled(
        self, texts: Iterable[str | Sequence[str]]
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Chunk by chunk ``texts``, k of them, and their vectors, float32 [k, hidden].

        Raises:
            UserError: As of ``refuse_other_texts``, or a text is too long, where these are
                refused.
        """
        for chunk in self._chunks(texts):
            yield (
                chunk.lines,
                self._evaluator.pooled(self._params, chunk.texts, chunk.batches, self._depth),
            )


def load_text_encoder(
    backbone: str | Path,
    pooling: Pooling | None = None,
    max_length: int = 128,
    long_texts: LongTexts = "cut",
    layer: int | None = None,
    dtype: Dtype = "float32",
) -> TextEncoder:
    """Loads a checkpoint that turns texts into vectors, as ``extract`` does.

        encoder = mtl.load_text_encoder("bert-base-uncased", "mean", layer=11)
        vectors = np.concatenate([some for _, some in encoder.pooled(["a text"])])

    Args:
        backbone: A folder, or a name on the hub.
        pooling: How token vectors become one vector; by default as the checkpoint declares.
        max_length: Tokens of a text at most.
        long_texts: What to do with longer ones.
        layer: The layer whose states ``pooled`` returns; by default the last.
        dtype: The precision of the encoder's matrix products; vectors are float32.

    Raises:
        UserError: The checkpoint can't be used, or max_length leaves no room for a text.
    """
    refuse_arguments(load_text_encoder, locals())
    encoder = load_encoder(backbone, pooling)
    reader = TextReader(encoder.tokenizer, encoder.config, max_length, long_texts)
    for note in (*encoder.notes, *left_out(encoder.folder, vectors=True)):
        say(f"note: {note}")
    # Vectors are made without a head.
    spec = ModelSpec(
        encoder.config, (("unused", 1),), encoder.pooling, dtype, reader.max_length, "auto"
    )
    return TextEncoder(spec, {"backbone": encoder.params}, reader, layer=layer)
