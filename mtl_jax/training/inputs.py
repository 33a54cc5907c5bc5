"""What a run starts from: the data, the tokenizer, the pre-trained backbone."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.config.data import DataConfig
from mtl_jax.config.model import Pooling
from mtl_jax.config.tasks import Task
from mtl_jax.config.train import Settings
from mtl_jax.core.downloads import cache_dir
from mtl_jax.core.errors import UserError
from mtl_jax.core.paths import expanded
from mtl_jax.data.batches import TextSet
from mtl_jax.data.corpus import Corpus, load_corpus
from mtl_jax.data.examples import Examples
from mtl_jax.data.labels import scale_of
from mtl_jax.data.packing.draws import room_of_draws
from mtl_jax.data.packing.mixing import Mixture, apportion, rates
from mtl_jax.data.packing.plan import Layout, PackingPlan
from mtl_jax.freezing.partition import Stages, digest
from mtl_jax.models.encoder import Encoder, load_encoder
from mtl_jax.models.sentence_transformers import left_out
from mtl_jax.models.tokenizer_files import tokenizer_digest
from mtl_jax.training.cache.array_store import GIB, ArrayStore
from mtl_jax.training.cache.facts import fact
from mtl_jax.training.cache.token_store import TokenStore
from mtl_jax.training.kinds.base import Metrics
from mtl_jax.training.text_baseline import baseline_record, text_baseline
from mtl_jax.training.text_reader import TextReader

# Of more training texts not all are tokenised for draws of some: each draw is for itself.
_MOST_SHARED = 200_000
# What frozen layers make of the whole is computed once for all draws where that costs less than
# for each of so many, and where as much memory has room for a draw.
_MOST_DRAWS, _MOST_BYTES = 8, 2 * GIB


@dataclasses.dataclass(frozen=True)
class Split:
    """One split, read and tokenised.

    Attributes:
        examples: As they were read.
        texts: Their token ids, or what frozen layers made of them.
        max_length: Tokens that a text may have; 0 where only those that there are count.
        like: The shape of training batches, whose texts these are taken to resemble.
        drawn_from: The texts that these are a draw from, where what frozen layers make of the
            former is kept, for all draws, and not of each draw.
        places: int64 [n], which of these they are.
    """

    examples: Examples
    texts: TextSet
    max_length: int = 0
    like: Layout | None = None
    drawn_from: TextSet | None = None
    places: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"<Split: {len(self.texts)} texts with labels for {', '.join(self.texts.labels)}>"

    def take(self, indices: np.ndarray) -> Split:
        """Picks examples, int [m]; the result has them in this order."""
        texts = self.texts.take(indices)
        places = None if self.places is None else self.places[indices]
        return dataclasses.replace(
            self, examples=self.examples.take(indices), texts=texts, places=places
        )


class Inputs:
    """Everything that runs of different scenarios and seeds share.

    Attributes:
        corpus: The data, checked; the texts of the test split are read when it is asked for.
        reader: The checkpoint's tokenizer.
        checkpoint: The backbone's folder.
        tokenizer_digest: SHA-256 of the tokenizer's files in it.
        bert: The backbone's configuration.
        backbone: The backbone's parameters, without a pooler that nothing would use.
        pooling: How a text's token vectors become one.
        weights_digest: SHA-256 of the backbone's parameters.
        stages: The same parameters with the SHA-256 of each stage.
        store: The token ids, and what the frozen bottom of the backbone made of them, from run to
            run.
        head_rates: Learning rates that sweeps have chosen, by what they were chosen for.
    """

    def __init__(self, settings: Settings, encoder: Encoder | None = None):
        """Loads them.

        Args:
            settings: Which data, and which backbone.
            encoder: That backbone, where it has been loaded already.

        Raises:
            UserError: The checkpoint or the data can't be used.
        """
        data = settings.data
        if encoder is None:
            encoder = load_encoder(
                settings.backbone,
                settings.pooling,
                settings.attention_dropout,
                settings.attention_dropout_on,
            )
        self.bert, self.backbone = encoder.config, encoder.params
        self.pooling: Pooling = encoder.pooling
        self.weights_digest = digest(self.backbone)
        self.stages = Stages(self.backbone)
        self.checkpoint = encoder.folder
        self.tokenizer_digest = tokenizer_digest(encoder.folder)
        self.store = ArrayStore(
            _bytes(settings.cache_size),
            expanded(settings.cache_folder or cache_dir() / "activations"),
        )
        self.reader = TextReader(
            encoder.tokenizer,
            self.bert,
            data.max_length,
            data.long_texts,
            pairs=bool(data.pair_columns),
            kept=TokenStore(self.store, self.tokenizer_digest),
        )
        self._doubts = [*encoder.notes, *left_out(encoder.folder, vectors=False)]
        self.corpus: Corpus = load_corpus(data)
        # Of the files as they are before a row is read.
        self._data_digest = self.corpus.fingerprint
        self._findings = self.corpus.check()
        self.head_rates: dict[Any, float] = {}
        self._data, self._test_told = data, False
        self._whole: Inputs | None = None
        self._splits: dict[str, Split] = {}
        self._training: dict[tuple[str, ...], Split] = {}
        self._plans: dict[tuple[int, int, tuple[str, ...]], PackingPlan] = {}

    def limited(self, data: DataConfig) -> Inputs:
        """The same with some of the training texts, or of their labels; nothing is read again.

        Draws of as many texts have batches of one layout, and so share their programs, and the
        batches to evaluate have that of the whole, so that they share these, too, and what is
        kept of validation and test.

        Args:
            data: Differs from the settings of these inputs, which have all training texts, in
                ``max_train_examples``, ``train_subset`` and ``label_fraction`` alone.
        """
        other = copy.copy(self)
        for name in ("tasks", "text_baseline"):
            vars(other).pop(name, None)
        other.corpus, other._data, other._whole = self.corpus.limited(data), data, self
        other._findings = other.corpus.check()
        other._splits, other._training, other._plans = {}, {}, {}
        return other

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Per task the names of its classes."""
        return self.corpus.classes

    @functools.cached_property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks by name, with what the training data tell of them."""
        found, columns = {}, self._data.columns
        for name, classes in self.classes.items():
            kind = self.corpus.kinds[name]
            scale = (0.0, 1.0)
            if kind == "regression":
                scale = scale_of(self.corpus.read("train").labels[name])
            task = Task(name, kind, columns[name], classes)
            found[name] = dataclasses.replace(task, mean=scale[0], deviation=scale[1])
        return found

    def _in_order(self, tasks: Sequence[str] | None) -> tuple[str, ...]:
        return tuple(task for task in self.classes if tasks is None or task in tasks)

    @functools.cached_property
    def text_baseline(self) -> Metrics:
        """What a bag of words reaches on validation; see ``text_baseline``."""
        known, asked = (self.split(name).examples for name in ("train", "validation"))
        record = baseline_record(known, asked, self.classes)
        return fact(record, lambda: text_baseline(known, asked, self.classes))

    def split(self, name: str) -> Split:
        """A split, read and tokenised once."""
        if name not in self._splits:
            examples = self.corpus.read(name)
            labels = standardised(examples.labels, self.tasks)
            if (whole := self._whole) is None or (name == "train" and not whole._shares_ids):
                texts = self.reader(examples.texts, labels, name)
                texts = dataclasses.replace(texts, soft=examples.soft)
                self._splits[name] = Split(examples, texts)
            elif name == "train":
                self._splits[name] = self._drawn(examples, labels, whole)
            else:
                texts = TextSet(whole.split(name).texts.tokens, labels)
                self._splits[name] = Split(examples, texts)
        return self._splits[name]

    @property
    def _shares_ids(self) -> bool:
        """Whether all training texts are tokenised for draws of some."""
        return len(self.corpus.places("train")) <= _MOST_SHARED

    def _drawn(self, examples: Examples, labels: Mapping[str, np.ndarray], whole: Inputs) -> Split:
        """Some of the training texts of the whole, with its ids."""
        every, own = (inputs.corpus.places("train") for inputs in (whole, self))
        places, texts = np.searchsorted(every, own), whole.split("train").texts
        drawn = TextSet(texts.tokens.take(places)[0], labels, soft=examples.soft)
        split = Split(examples, drawn)
        size = len(texts.tokens.ids) * self.bert.hidden_size * np.dtype(np.float32).itemsize
        if len(texts) > _MOST_DRAWS * len(places) or size > _MOST_BYTES:
            return split
        return dataclasses.replace(split, drawn_from=texts, places=places)

    def training(self, tasks: Sequence[str] | None = None) -> Split:
        """The training texts with a label for at least one of ``tasks`` (all), picked once.

        The labels of other tasks stay as they are. It is ``split("train")`` itself where
        that has no other texts.

        Raises:
            UserError: There is none.
        """
        asked, tasks = tasks, self._in_order(tasks)
        if tasks not in self._training:
            split = self.split("train")
            there = tasks and split.examples.labelled(tasks)
            chosen = np.flatnonzero(there)
            if not len(chosen):
                raise UserError(
                    f"no training text has a label for {' or '.join(asked or tasks)}: name its "
                    "column with --label-columns, or raise --max-train-examples"
                )
            whole = len(chosen) == len(split.texts)
            self._training[tasks] = split if whole else split.take(chosen)
        return self._training[tasks]

    def plan(
        self, batch_size: int, devices: int, tasks: Sequence[str] | None = None
    ) -> PackingPlan:
        """Where the texts of ``training(tasks)`` go, worked out once for all runs.

        Raises:
            UserError: There is no such text.
        """
        key = batch_size, devices, self._in_order(tasks)
        if key not in self._plans:
            split = self.training(tasks)
            lengths, mixture = split.texts.tokens.lengths, None
            if (sources := split.examples.sources) is not None:
                mixture = Mixture(lengths, sources, self._places(sources))
            room = None
            whole = self._whole
            if whole is not None and whole._shares_ids and mixture is None:
                room = room_of_draws(whole.training(tasks).texts.tokens.lengths, len(lengths))
                room = room if PackingPlan.has_room(lengths, room) else None
            hidden_size = self.bert.hidden_size
            plan = PackingPlan(lengths, batch_size, devices, hidden_size, mixture, room)
            self._plans[key] = plan
        return self._plans[key]

    def layout_to_evaluate(self, batch_size: int, devices: int) -> Layout:
        """The shape of training batches that those to evaluate take after; see ``ModelSpec``."""
        whole = self._whole
        like = whole if whole is not None and whole._shares_ids else self
        return like.plan(batch_size, devices).layout

    def _places(self, sources: np.ndarray) -> dict[int, int]:
        """The texts of each data set in an epoch, from that of each text; as many in all."""
        data, (present, sizes) = self._data, np.unique(sources, return_counts=True)
        shares = rates(sizes, data.mixing, data.mixing_temperature, data.mixing_cap)
        return dict(zip(present.tolist(), apportion(shares, len(sources)).tolist(), strict=True))

    def refuse_long(self) -> None:
        """Where long texts are refused, does so for every split now, and not after training.

        Raises:
            UserError: There is one.
        """
        if self.reader.refuses:
            for name in self.corpus.splits:
                self.split(name)

    def record(self) -> dict[str, Any]:
        """What a run depends on, as JSON, for its ``config.json``."""
        return {
            "bert": self.bert.record(),
            "pooling": self.pooling,
            "classes": dict(self.classes),
            **record_of(self.tasks),
            "weights_sha256": self.weights_digest,
            "tokenizer_sha256": self.tokenizer_digest,
            "data": {"name": self.corpus.name, "fingerprint": self._data_digest},
        }

    def notes(self) -> list[str]:
        """What a user should see of checkpoint and data, and of the splits read so far."""
        notes = [f"note: {doubt}" for doubt in self._doubts]
        notes += [*self.corpus.notes, *map(str, self._findings)]
        if (sources := self.split("train").examples.sources) is not None:
            notes += [
                f"an epoch has {places} texts of the {int(np.sum(sources == source))} of "
                f"{self.corpus.sources[source]}"
                for source, places in self._places(sources).items()
            ]
        for name in self._splits:
            notes += self._of_test() if name == "test" else self._cut(name)
        return notes

    def of_test(self) -> list[str]:
        """The same of the test split alone, which is read; nothing when asked for again."""
        if self._whole is not None:
            return self._whole.of_test()
        told, self._test_told = self._test_told, True
        return [] if told else self._of_test()

    def _of_test(self) -> list[str]:
        found = self.corpus.check_test(self.split("test").examples)
        new = (str(finding) for finding in found if finding not in self._findings)
        return [*self._cut("test"), *new]

    def _cut(self, name: str) -> list[str]:
        """How many texts of a split were cut, in words; nothing where none was."""
        return self.reader.cut(self.split(name).texts, name)


def open_inputs(settings: Settings) -> Inputs:
    """What ``Inputs`` loads; of a ``train_subset`` from the whole, as a study does.

    Raises:
        UserError: See there.
    """
    if settings.data.train_subset is None:
        return Inputs(settings)
    whole = Inputs(dataclasses.replace(settings, data=settings.data.whole()))
    return whole.limited(settings.data)


def standardised(
    labels: Mapping[str, np.ndarray], tasks: Mapping[str, Task]
) -> dict[str, np.ndarray]:
    """The labels as models are trained on them: those of regressions without unit, float32."""
    return {
        name: ((of_task - tasks[name].mean) / tasks[name].deviation).astype(np.float32)
        if tasks[name].kind == "regression"
        else of_task
        for name, of_task in labels.items()
    }


def record_of(tasks: Mapping[str, Task]) -> dict[str, Any]:
    """What the record of a run says of its tasks beside their classes, as JSON.

    Nothing where all are ``single_label``, else ``kinds``, and ``scales`` of the regressions.
    """
    if all(task.kind == "single_label" for task in tasks.values()):
        return {}
    scales = {
        name: {"mean": task.mean, "deviation": task.deviation}
        for name, task in tasks.items()
        if task.kind == "regression"
    }
    return {"kinds": {name: task.kind for name, task in tasks.items()}, "scales": scales}


def _bytes(gib: float) -> int:
    """So many GiB; of infinitely many as many as can be."""
    return int(min(gib * GIB, sys.maxsize))
