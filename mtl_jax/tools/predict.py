"""A finished run's folder, put to use on new texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.config.data import DataConfig, LongTexts
from mtl_jax.config.model import Dtype, Pooling
from mtl_jax.config.tasks import tasks_in_words
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, shortened
from mtl_jax.core.type_checks import refuse_arguments
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.examples import Examples
from mtl_jax.data.packing.plan import Layout
from mtl_jax.data.pairs import Pair
from mtl_jax.freezing.partition import Params
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.tokenizer import load_tokenizer
from mtl_jax.runs.best_checkpoint import best_parameters
from mtl_jax.runs.run_config import model_spec, read_record, recorded_tasks
from mtl_jax.runs.workdir import Workdir
from mtl_jax.tools.text_encoder import TextEncoder
from mtl_jax.training.inputs import Split, standardised
from mtl_jax.training.kinds.base import Metrics
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.text_reader import TextReader


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
        dtype: Dtype | None = None,
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
            dtype: The precision of the encoder's matrix products; by default as in the training.

        Raises:
            UserError: The folder has no finished checkpoint of a run, or it names code of a module
                that is not trusted.
        """
        refuse_arguments(Predictor.__init__, locals())
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
        if dtype is not None:
            spec = dataclasses.replace(spec, dtype=dtype)
        super().__init__(spec, params, reader, tasks, layer)

    def __repr__(self) -> str:
        return f"<Predictor of {str(self.folder)!r}; {tasks_in_words(self.tasks.values())}>"

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
            UserError: As of ``answers``.
        """
        return list(self.answers(texts))

    def answers(self, texts: Iterable[str | Sequence[str]]) -> Iterator[dict[str, Any]]:
        """Yields what ``predict`` returns, while the texts are being read.

        Raises:
            UserError: As of ``pooled``.
        """
        for lines, logits in self.logits(texts):
            yield from self.as_answers(lines, logits)

    def logits(
        self, texts: Iterable[str | Sequence[str]]
    ) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
        """Chunk by chunk the texts, k of them, and per task their logits, float32 [k, outputs].

        Raises:
            UserError: As of ``pooled``.
        """
        for chunk in self._chunks(texts):
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

    def _as_text(self, given: str | Sequence[str]) -> str:
        """A text or a pair, whichever the model was trained on.

        Raises:
            UserError: It is the other one, or neither.
        """
        text = super()._as_text(given)
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


def _layout(recorded: dict[str, Any] | None) -> Layout | None:
    """The layout that a run has recorded, so that its own texts give its numbers again."""
    if recorded is None:
        return None
    return Layout(**{**recorded, "blocks": tuple(map(tuple, recorded["blocks"]))})
