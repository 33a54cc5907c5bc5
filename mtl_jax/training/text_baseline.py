"""What a bag of words tells of the tasks, without an encoder: the least a run should reach."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.core.blas import one_thread
from mtl_jax.core.versions import version
from mtl_jax.data.examples import Examples
from mtl_jax.data.kinds import has_label
from mtl_jax.data.texts import content_digest, take
from mtl_jax.training.kinds.base import Metrics
from mtl_jax.training.kinds.registry import kind_of
from mtl_jax.training.metrics import of_metrics, score, score_name, split_metrics

# So that it takes a second or two whatever the data: more texts and words change little.
_MOST_TEXTS, _MOST_WORDS = 20_000, 30_000


# To be raised when the models are others, or their metrics.
_VERSION = 1


def baseline_record(
    known: Examples, asked: Examples, classes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What ``text_baseline`` depends on, as JSON."""
    return {
        "text_baseline": _VERSION,
        "versions": [version(package) for package in ("mtl-jax", "scikit-learn")],
        "classes": {task: list(names) for task, names in classes.items()},
        "examples": [_digest(examples) for examples in (known, asked)],
    }


def _digest(examples: Examples) -> str:
    hasher = hashlib.sha256(content_digest(examples.texts).encode())
    for task, labels in examples.labels.items():
        hasher.update(f"{task} {labels.dtype} {labels.shape}\n".encode())
        hasher.update(np.ascontiguousarray(labels).view(np.uint8).data)
    groups = [] if examples.groups is None else examples.groups.tolist()
    hasher.update(json.dumps(groups).encode())
    return hasher.hexdigest()


def text_baseline(
    known: Examples, asked: Examples, classes: Mapping[str, Sequence[str]]
) -> Metrics:
    """Returns the metrics of a linear model on TF-IDF vectors of words.

    That is logistic regression, one for each class where a text may have several, or ridge
    regression; see ``TaskKind.bag_of_words``.

    Args:
        known: The training examples; of more than 20,000 as many, evenly spaced.
        asked: Those to predict.
        classes: Per task the names of its classes.

    Returns:
        ``metrics.split_metrics`` of its predictions on ``asked``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer

    predicted = {}
    for task in classes:
        kind = kind_of(known.labels[task])
        there = np.flatnonzero(has_label(known.labels[task]))
        if len(there) > _MOST_TEXTS:
            there = there[np.linspace(0, len(there) - 1, _MOST_TEXTS).round().astype(int)]
        labels = known.labels[task][there]
        # One class, or texts without any word, leave nothing to learn.
        predicted[task] = kind.constant(labels, len(asked), len(classes[task]))
        words = TfidfVectorizer(sublinear_tf=True, max_features=_MOST_WORDS)
        if not kind.can_learn(labels):
            continue
        try:
            vectors = words.fit_transform(take(known.texts, there))
        except ValueError:
            continue
        model = kind.bag_of_words()
        with warnings.catch_warnings(), one_thread():
            # As good as it gets in so many iterations is good enough.
            warnings.simplefilter("ignore", ConvergenceWarning)
            # A class that all texts have, or none, is predicted for all, or none.
            warnings.filterwarnings("ignore", "Label .* is present in all training examples")
            texts = iter(asked.texts)
            some = iter(lambda texts=texts: list(itertools.islice(texts, _MOST_TEXTS)), [])
            predicted[task] = kind.fitted(model, vectors, labels, map(words.transform, some))
    return split_metrics(asked.labels, predicted, classes, asked.groups)


def in_words(metrics: Metrics) -> str:
    """What it reaches on validation, for a reader."""
    by_model: dict[str, list[str]] = {}
    for task, of_task in metrics.items():
        if of_task["examples"]:
            kind = of_metrics(of_task)
            by_model.setdefault(kind.text_model, []).append(f"{task} {kind.in_words(of_task)}")
    if not by_model:
        return "for comparison: TF-IDF cannot be measured, as validation has no label"
    reached = [f"with {model} reaches {'; '.join(words)}" for model, words in by_model.items()]
    return f"for comparison: TF-IDF {', '.join(reached)} on validation"


def shortfalls(validation: Metrics, baseline: Metrics) -> list[str]:
    """A warning for each task in which a run has learned less than a bag of words."""
    return [
        f"warning: {task}: {score_name({task: of_task})} {mine:.3f} on validation, where TF-IDF "
        f"with {of_metrics(of_task).text_model} reaches {theirs:.3f}: try other learning rates, "
        "more epochs, or training more of the backbone, before concluding that the texts do not "
        "tell"
        for task, of_task in validation.items()
        if of_task["examples"]
        and (mine := score(of_task)) is not None
        and (theirs := score(baseline[task])) is not None
        and mine < theirs
    ]
