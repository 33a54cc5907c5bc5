"""A finished run's folder, or a bare checkpoint, put to use on new texts."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mtl_jax.config.data import DataConfig, LongTexts
from mtl_jax.config.model import Pooling
from mtl_jax.config.tasks import Task
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, cannot_read, shortened
from mtl_jax.core.prefetch import ahead
from mtl_jax.data.batches import HostBatch, TextSet
from mtl_jax.data.corpus import Examples, load_corpus
from mtl_jax.data.kinds import KINDS as LABELS
from mtl_jax.data.packing.plan import Layout
from mtl_jax.data.pairs import Pair
from mtl_jax.data.sources import files
from mtl_jax.data.sources.base import Rows, Stream
from mtl_jax.freezing.partition import Params
from mtl_jax.models.encoder import load_encoder
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.pretrained import left_out
from mtl_jax.models.tokenizer import load_tokenizer
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.run_config import identity, model_spec, read_record, recorded_tasks
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.evaluator import Evaluator, ModelSpec
from mtl_jax.training.inputs import Split, TextReader, standardised
from mtl_jax.training.kinds.base import Metrics
from mtl_jax.training.kinds.registry import KINDS

# Texts in memory at a time, while as many wait; enough for the packing to leave little padding.
_CHUNK = 1024


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
        self._evaluator = Evaluator(spec)
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
        while chunk := list(itertools.islice(lines, _CHUNK)):
            blank = {
                name: LABELS[task.kind].blank(len(chunk), len(task.classes))
                for name, task in self.tasks.items()
            }
            origin = f"lines {first} to {first + len(chunk) - 1}"
            texts = self.reader(chunk, standardised(blank, self.tasks), origin)
            if first == 1 and len(chunk) == _CHUNK:
                self._evaluator.resemble(texts.tokens.lengths)
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
    """The best checkpoint of a run, from its folder alone.

        answers = mtl.Predictor("runs/mine").predict(["a text"])
        answers[0]["topic"]["label"]

    A model of pairs is given pairs: ``predict([("a premise", "a hypothesis")])``.

    Attributes:
        folder: The run's.
        classes: Per task the names of its classes; none of a regression.
        text_columns: The column of the texts that it was trained on, or the two of pairs; None
            where the tasks' differ.
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
        """Loads it.

        Args:
            folder: The run's.
            long_texts: What becomes of texts that are longer than those of the training; by
                default what became of them in the training.
            trust: The modules that may be imported, where the folder names a user's own code.
            layer: Whose states ``pooled`` gives; by default the last one's.
            pooling: How it makes one vector of a text; by default as in the training. Predictions
                need that one.

        Raises:
            UserError: There is no finished checkpoint of a run, or it names code of a module that
                is not trusted.
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
        """Returns for each text ``{"text", task: answer ...}``.

        An answer is ``{"label", "probability"}``; of several labels ``{"labels",
        "probabilities"}``, the probability of each class by its name, and as labels those from
        0.5 on; of a regression ``{"value"}``, in the unit of the labels.

        Args:
            texts: Texts, or pairs of two.

        Raises:
            UserError: A text is too long, where these are refused.
        """
        return list(self.answers(texts))

    def answers(self, texts: Iterable[str | Sequence[str]]) -> Iterator[dict[str, Any]]:
        """As ``predict``, one by one while the texts are read.

        Raises:
            UserError: A text is too long, where these are refused.
        """
        for chunk in self._chunks(map(self._as_trained, texts)):
            logits, _ = self._evaluator.logits(self._params, chunk.texts, chunk.batches)
            found = {
                name: KINDS[task.kind].answers(logits[name], task)
                for name, task in self.tasks.items()
            }
            for i, text in enumerate(chunk.lines):
                shown = [text.first, text.second] if isinstance(text, Pair) else text
                yield {"text": shown, **{name: of_task[i] for name, of_task in found.items()}}

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
            "its --workdir, which makes it again"
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


def read_lines(stream: IO[bytes], origin: str = "standard input") -> Iterator[str]:
    """Lines of UTF-8 text without their ends.

    Args:
        stream: Where they come from.
        origin: What to call it in an error.

    Raises:
        UserError: It can't be read, or a line is not UTF-8.
    """
    number = 0
    try:
        for line in stream:
            number += 1
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{origin}, line {number}: not valid UTF-8 ({error.reason}): convert it"
        ) from error
    except OSError as error:
        raise UserError(
            f"{origin} can't be read ({error.strerror}): give it lines of text"
        ) from error


def read_pairs(lines: Iterable[str], columns: Sequence[str]) -> Iterator[Pair]:
    """Pairs of texts, each a line of JSON: a list of two, or an object with the two columns.

    Args:
        lines: The lines.
        columns: The names of the columns.

    Raises:
        UserError: A line is neither.
    """
    for number, line in enumerate(lines, start=1):
        found: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
        if isinstance(found, dict):
            found = [found.get(column) for column in columns]
        if not (isinstance(found, list) and [type(each) for each in found] == [str, str]):
            first, second = columns
            raise UserError(
                f"line {number}, {shortened(line, 60)!r}, is no pair of texts, which the model was "
                f'trained on: write ["a", "b"] or {{"{first}": "a", "{second}": "b"}}, or read a '
                "file with --input FILE --text-columns"
            )
        yield Pair(*found)


def read_texts(
    path: Path, text_columns: Sequence[str] | None, otherwise: Sequence[str]
) -> Iterator[str]:
    """The texts of a file.

    Args:
        path: A ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` or ``.parquet`` file with a column of
            texts, or two of pairs; of a file with another ending, and without ``text_columns``,
            each line is a text, or of pairs one of JSON.
        text_columns: The column, or the two.
        otherwise: The same where that is None.

    Raises:
        UserError: The file can't be read, lacks the column, or is damaged; what is no table is
            damaged where it is read.
    """
    columns = text_columns or otherwise
    if text_columns is None and path.suffix.lower() not in files.ENDINGS:
        try:
            stream = path.open("rb")
        except OSError as error:
            raise cannot_read(path, error) from error
        lines = read_lines(stream, str(path))
        return _closing(stream, read_pairs(lines, columns) if len(columns) == 2 else lines)
    pair_column = columns[1] if len(columns) == 2 else None
    stream = files.stream_table(path, columns[0], {}, pair_column=pair_column)
    # A file without the column is refused here, whoever asks for its texts.
    first = next(stream.rows)
    return _texts_of(first, stream)


def _texts_of(first: Rows, stream: Stream) -> Iterator[str]:
    yield from first.texts
    for rows in stream.rows:
        yield from rows.texts
    for note in stream.notes:
        say(note)


def _closing(stream: IO[bytes], lines: Iterator[str]) -> Iterator[str]:
    with stream:
        yield from lines


# Names of columns that many files have.
_USUAL = {"id", "text", "sentence", "title", "body", "content", "comment", "review", "message"}
_USUAL |= {"tweet", "document", "label", "category", "class", "topic", "sentiment", "rating"}


def looks_like_header(line: str, columns: Iterable[str]) -> bool:
    """Whether a line names the columns of a table, or holds an object of JSON Lines.

    Args:
        line: The first one of what is taken for lines of text.
        columns: Names that a column is known to have.
    """
    line, known = line.removeprefix("\ufeff").strip(), {name.lower() for name in columns}
    if line.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            names = json.loads(line)
            return isinstance(names, dict) and bool({*map(str.lower, names)} & (known | _USUAL))
        return False
    for delimiter in ("\t", ","):
        fields = [field.strip().strip('"').strip().lower() for field in line.split(delimiter)]
        if known & {*fields}:
            return True
        if len(fields) > 1 and all(re.fullmatch(r"\w+", field) for field in fields):
            return bool(_USUAL & {*fields})
    return False
