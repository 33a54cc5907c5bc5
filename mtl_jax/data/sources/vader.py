"""The Sentences corpus: who wrote a sentence for what, and how positive people find it.

The human-rated corpora of Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model for
Sentiment Analysis of Social Media Text" (ICWSM 2014), MIT licence, as a TFDS builder.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mtl_jax.core import downloads
from mtl_jax.core.errors import UserError
from mtl_jax.data.sources import tfds as tfds_source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mtl_jax.data.sources.base import Fields, Source

SOURCES = {
    "tweet": "tweets",
    "movie_review": "movieReviewSnippets",
    "product_review": "amazonReviewSnippets",
    "editorial": "nytEditorialSnippets",
}
"""The classes of the task classifier, and what the names of their files begin with."""
SENTIMENTS = ("negative", "neutral", "positive")
SENTENCES = 23_703


# Of the rating scaled to [-1, 1], from which on and up to which a sentence has a sentiment.
_THRESHOLD = 0.05


class Sentence(NamedTuple):
    """One rated sentence; ratings are in [-4, 4], their mean and each rater's."""

    source: str
    id: str
    text: str
    rating: float
    rating_std: float
    ratings: tuple[float, ...] = ()

    @property
    def sentiment(self) -> str:
        """The class by the paper's thresholds on the rating scaled to [-1, 1]."""
        return _sentiment(self.rating)

    @property
    def of_raters(self) -> list[float]:
        """The share of the raters whose own rating is of each class, by the same thresholds."""
        found = collections.Counter(map(_sentiment, self.ratings))
        return [found[name] / len(self.ratings) for name in SENTIMENTS]

    @property
    def of_other_raters(self) -> list[float]:
        """The probability of each class, had as many others rated the sentence.

        The mean of their ratings is taken to be normal about that of those who did, with its
        standard error. (A label that is a threshold of a mean is a coin toss where the mean is
        near it.)
        """
        error = self.rating_std / math.sqrt(max(len(self.ratings) - 1, 1))
        if error == 0:
            return [float(name == self.sentiment) for name in SENTIMENTS]
        mean = statistics.NormalDist(self.rating, error)
        negative, rest = mean.cdf(-4 * _THRESHOLD), mean.cdf(4 * _THRESHOLD)
        return [negative, rest - negative, 1 - rest]

    @property
    def split(self) -> str:
        """Half test; of the rest a tenth validation. It rests on the source and id alone."""
        digest = int(hashlib.sha256(f"{self.source}:{self.id}".encode()).hexdigest(), 16)
        if digest % 2:
            return "test"
        return "validation" if digest // 2 % 10 == 0 else "train"


def _sentiment(rating: float) -> str:
    scaled = rating / 4
    if scaled <= -_THRESHOLD:
        return "negative"
    return "positive" if scaled >= _THRESHOLD else "neutral"


class Sentences(tfds.core.GeneratorBasedBuilder):
    """23,703 sentences of four sources, each rated by 15 to 100 people."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The files of vaderSentiment 3.3.2."}  # noqa: RUF012  (TFDS's way)
    # Nothing is downloaded by TFDS, so it need not look for checksums of URLs.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(self._features()),
            supervised_keys=("text", "sentiment"),
            homepage="https://github.com/cjhutto/vaderSentiment",
            license="MIT",
            # Filled in when the corpus is prepared: what was dropped or odd, and how often.
            metadata=tfds.core.MetadataDict(),
        )

    def _features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {
            "text": tfds.features.Text(),
            "id": tfds.features.Text(),
            "classifier": tfds.features.ClassLabel(names=list(SOURCES)),
            "sentiment": tfds.features.ClassLabel(names=list(SENTIMENTS)),
            "rating": tfds.features.Scalar(np.float32),
            "rating_std": tfds.features.Scalar(np.float32),
        }

    def _example(self, sentence: Sentence) -> dict[str, object]:
        return {
            "text": sentence.text,
            "id": sentence.id,
            "classifier": sentence.source,
            "sentiment": sentence.sentiment,
            "rating": sentence.rating,
            "rating_std": sentence.rating_std,
        }

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, object]]]]:
        del dl_manager  # The files are a pinned asset.
        counts: collections.Counter[str] = collections.Counter()
        sentences = list(read(downloads.sentences(), counts))
        if len(sentences) != SENTENCES:
            raise UserError(
                f"the Sentences corpus has {len(sentences)} sentences and not {SENTENCES} "
                f"({_listed(counts) or 'none dropped'}): delete "
                f"{downloads.SENTENCES.folder} so that "
                "it is fetched again"
            )
        metadata = self.info.metadata
        assert metadata is not None  # noqa: S101  (it is given in _info)
        metadata.update(counts)
        return {
            split: self._generate_examples([s for s in sentences if s.split == split])
            for split in ("train", "validation", "test")
        }

    def _generate_examples(
        self, sentences: list[Sentence]
    ) -> Iterator[tuple[str, dict[str, object]]]:
        for sentence in sentences:
            yield f"{sentence.source}:{sentence.id}", self._example(sentence)


# In the order of ``SENTIMENTS``.
_OF_RATERS = {
    "sentiment_raters": lambda sentence: sentence.of_raters,
    "sentiment_other_raters": lambda sentence: sentence.of_other_raters,
}


class RatedSentences(Sentences):
    """The same sentences, in the same order, with what their raters make of their sentiment.

    A data set of its own, so that runs without it keep the fingerprint of their data.
    """

    def _features(self) -> dict[str, tfds.features.FeatureConnector]:
        shares = {name: tfds.features.Sequence(np.float32) for name in _OF_RATERS}
        return super()._features() | shares

    def _example(self, sentence: Sentence) -> dict[str, object]:
        shares = {name: shares_of(sentence) for name, shares_of in _OF_RATERS.items()}
        return super()._example(sentence) | shares


def read(folder: Path, counts: collections.Counter[str]) -> Iterator[Sentence]:
    """Reads the raw files.

    Args:
        folder: The folder with the text files.
        counts: What was dropped or odd is counted here, by reason.

    Yields:
        The sentences, source by source, in the order of the files.
    """
    for source, stem in SOURCES.items():
        raters = {}
        for fields in _rows(folder / f"{stem}_anonDataRatings.txt"):
            with contextlib.suppress(ValueError, IndexError):
                ratings = json.loads(fields[3]) if len(fields) > 3 else ()
                raters[fields[0]] = (float(fields[1]), float(fields[2]), tuple(ratings))
        seen = set()
        for fields in _rows(folder / f"{stem}_GroundTruth.txt"):
            if reason := _fault(fields, raters, seen):
                counts[f"dropped: {reason}"] += 1
                continue
            identity, rating, text = fields
            seen.add(identity)
            mean, deviation, ratings = raters[identity]
            # Some tweets' rating leaves out raters that the deviation still counts.
            if abs(mean - float(rating)) > 1e-3:
                counts["kept: rating differs from the mean of the raters listed"] += 1
            yield Sentence(source, identity, text, float(rating), deviation, ratings)


def prepare(kind: type[Sentences] = Sentences) -> tfds.core.DatasetBuilder:
    """The builder, prepared in the cache; ready for ``as_data_source``.

    Raises:
        UserError: The corpus cannot be fetched, or the cache cannot be written.
    """
    builder = kind(data_dir=downloads.cache_dir() / "tfds", file_format=tfds_source.FILE_FORMAT)
    if not builder.info.splits:
        # It takes a second or two, over before a progress bar can be read.
        tfds.disable_progress_bar()
    return tfds_source.prepare(builder, log=io.StringIO())


def open_sentences(fields: Fields) -> Source:
    """The corpus as a source of examples, grouped by who wrote them.

    Args:
        fields: The features that are read.

    Raises:
        UserError: The corpus cannot be fetched, or has no such feature.
    """
    rated = any(column in _OF_RATERS for column in fields.labels.values())
    builder = prepare(RatedSentences if rated else Sentences)
    counts = builder.info.metadata or {}
    source = tfds_source.source(
        builder,
        fields,
        group_column="classifier",
        notes=tuple(f"{reason} ({count} sentences)" for reason, count in counts.items()),
    )
    pinned = hashlib.sha256(f"{downloads.SENTENCES.sha256} {source.fingerprint()}".encode())
    return dataclasses.replace(source, fingerprint=pinned.hexdigest)


def _rows(path: Path) -> Iterator[list[str]]:
    for line in path.read_text(encoding="utf-8-sig").split("\n"):
        if line:
            yield line.split("\t")


def _fault(fields: list[str], raters: Mapping[str, object], seen: set[str]) -> str:
    if len(fields) != 3:
        return "not three fields"
    identity, rating, text = fields
    try:
        usable = -4 <= float(rating) <= 4
    except ValueError:
        usable = False
    if not usable:
        return "no rating in [-4, 4]"
    if not text.strip():
        return "empty text"
    if identity in seen:
        return "id seen before"
    return "" if identity in raters else "no standard deviation"


def _listed(counts: collections.Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in counts.items())
