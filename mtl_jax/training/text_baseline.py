"""What a bag of words tells of the tasks, without an encoder: the least a run should reach."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from mtl_jax.data.corpus import Examples
from mtl_jax.data.texts import take
from mtl_jax.training.metrics import Metrics, split_metrics

# So that it takes a second or two whatever the data: more texts and words change little.
_MOST_TEXTS, _MOST_WORDS = 20_000, 30_000


def text_baseline(
    known: Examples, asked: Examples, classes: Mapping[str, Sequence[str]]
) -> Metrics:
    """Returns the metrics of a logistic regression on TF-IDF vectors of words.

    Classes count alike (``class_weight="balanced"``), for macro-F1 is what runs are chosen by.
    It is fitted by stochastic gradient descent, in a second where other solvers take a minute.

    Args:
        known: The training examples; of more than 20,000 as many, evenly spaced.
        asked: Those to predict.
        classes: Per task the names of its classes.

    Returns:
        ``metrics.split_metrics`` of its predictions on ``asked``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier

    predicted = {}
    for task in classes:
        there = np.flatnonzero(known.labels[task] >= 0)
        if len(there) > _MOST_TEXTS:
            there = there[np.linspace(0, len(there) - 1, _MOST_TEXTS).round().astype(int)]
        labels = known.labels[task][there]
        # One class, or texts without any word, leave nothing to learn.
        predicted[task] = np.full(len(asked), labels[0] if len(labels) else 0, np.int32)
        words = TfidfVectorizer(sublinear_tf=True, max_features=_MOST_WORDS)
        if len(np.unique(labels)) < 2:
            continue
        try:
            vectors = words.fit_transform(take(known.texts, there))
        except ValueError:
            continue
        model = SGDClassifier(loss="log_loss", class_weight="balanced", max_iter=50, random_state=0)
        with warnings.catch_warnings():
            # As good as it gets in so many iterations is good enough.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(vectors, labels)
        texts = iter(asked.texts)
        some = iter(lambda texts=texts: list(itertools.islice(texts, _MOST_TEXTS)), [])
        predicted[task] = np.concatenate([model.predict(words.transform(each)) for each in some])
    return split_metrics(asked.labels, predicted, classes, asked.groups)


def in_words(metrics: Metrics) -> str:
    """What it reaches on validation, for a reader."""
    words = [
        f"{task} accuracy {metrics[task]['accuracy']:.3f}, macro-F1 {metrics[task]['macro_f1']:.3f}"
        for task in metrics
        if metrics[task]["examples"]
    ]
    return f"to compare: TF-IDF with logistic regression reaches {'; '.join(words)} on validation"


def shortfalls(validation: Metrics, baseline: Metrics) -> list[str]:
    """A warning for each task in which a run has learned less than a bag of words."""
    return [
        f"warning: {task}: macro-F1 {mine:.3f} on validation, where TF-IDF with logistic "
        f"regression reaches {theirs:.3f}: train longer (--epochs), with other learning rates, or "
        "more of the backbone, before you conclude that the texts don't tell"
        for task in validation
        if validation[task]["examples"]
        and (mine := validation[task]["macro_f1"]) < (theirs := baseline[task]["macro_f1"])
    ]
