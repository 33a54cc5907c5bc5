"""What a study's arms are held against: a bag of words, and a linear probe on frozen features."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl_jax.core import distributed
from mtl_jax.core.blas import one_thread
from mtl_jax.core.json_files import OBJECT, read_json, read_lines, rewrite_lines, write_json
from mtl_jax.data.kinds import has_label
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.predictions import write_predictions
from mtl_jax.studies.results_store import BASELINES, OF_BASELINES, Texts, texts_of_line
from mtl_jax.studies.settings import Arm, arm_folder
from mtl_jax.studies.turns import turn
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.metrics import mean_score, split_metrics

if TYPE_CHECKING:
    from mtl_jax.config.tasks import Task

TF_IDF, PROBE = "tf_idf", "logistic_probe"
# Of a probe, the inverse strengths of its penalty, of which validation chooses one.
_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_MOST_WORDS = 30_000
_LINE, _REMEDY = "line.json", "remove its folder: it is made again with the next arm"


def leave_baselines(folder: Path, arm: Arm, inputs: Inputs, *, alone: bool = False) -> None:
    """Leaves what baselines reach on an arm's texts, once for all arms that have the same.

    In ``baselines/`` a folder for each: ``line.json``, for ``gather_baselines``, with ``baseline``,
    ``train_subset``, ``setting``, and the metrics on ``validation`` and ``test``; and what they
    predict, as ``write_predictions`` has it. ``tf_idf`` is a linear model on TF-IDF vectors of
    words, ``logistic_probe`` one on the vectors of the frozen backbone: logistic regression, or
    ridge regression. Of several strengths of its penalty validation chooses.

    Args:
        folder: Of the study.
        arm: The arm.
        inputs: Those of it.
        alone: Whether no worker can be at it, too.
    """
    if distributed.count() > 1:
        return
    subset = arm.config.data.train_subset
    key = {"train_subset": subset, **({"setting": dict(arm.setting)} if arm.setting else {})}
    seed = 0 if subset is None else arm.config.seed
    places = {
        name: folder / OF_BASELINES / Path(arm_folder(str(folder), name, seed, arm.setting)).name
        for name in (TF_IDF, PROBE)
    }
    # A probe needs vectors that are kept.
    last = places[PROBE if arm.config.prefix_cache else TF_IDF] / _LINE

    claims = folder / OF_BASELINES / ".claims"
    with turn(claims, last.parent.name, last.exists, alone=alone) as mine:
        if not mine:
            return
        config = dataclasses.replace(
            arm.config, scenario="backbone_frozen", recipe=None, hold_frozen_heads=0.0
        )
        run = PhaseRun(config, inputs)
        vectors = {TF_IDF: _words(inputs)}
        if config.prefix_cache:
            vectors[PROBE] = {name: run.split(name).texts.pooled for name in inputs.corpus.splits}
        for name, of_splits in vectors.items():
            logits = _logits(name, inputs, of_splits)
            line = _measured(inputs, logits, places[name])
            texts = len(inputs.split("train").texts)
            known = {"baseline": name, **key, "train_examples": texts}
            write_json(places[name] / _LINE, {**known, **line})
        run.release()


def gather_baselines(folder: Path) -> list[dict[str, Any]]:
    """Writes ``baselines.jsonl`` from what workers have left, and returns its lines.

    Args:
        folder: Of the study.
    """
    lines = read_lines(folder / BASELINES)
    known = {_key(line) for line in lines}
    files = sorted(folder.glob(f"{OF_BASELINES}/*/{_LINE}"))
    left = [read_json(file, OBJECT, _REMEDY) for file in files]
    if new := [line for line in left if _key(line) not in known]:
        lines += sorted(
            new, key=lambda line: (line["train_subset"] or 0, line["baseline"] == PROBE)
        )
        rewrite_lines(folder / BASELINES, lines)
    return lines


def _key(line: Mapping[str, Any]) -> tuple[str, Texts]:
    return line["baseline"], texts_of_line(line)


def _words(inputs: Inputs) -> dict[str, Any]:
    """Per split the TF-IDF vectors of its texts, by the words of the training texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, max_features=_MOST_WORDS)
    try:
        words.fit(inputs.split("train").examples.texts)
    except ValueError:
        # There is no word in them.
        return {n: np.zeros((len(inputs.split(n).texts), 1)) for n in inputs.corpus.splits}
    return {n: words.transform(inputs.split(n).examples.texts) for n in inputs.corpus.splits}


def _logits(
    name: str, inputs: Inputs, vectors: Mapping[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
    """Per split and task float32 [n, outputs], as a model's heads would give them."""
    found: dict[str, dict[str, np.ndarray]] = {split: {} for split in vectors if split != "train"}
    for task in inputs.tasks.values():
        labels = inputs.split("train").texts.labels[task.name]
        there = np.flatnonzero(has_label(labels))
        known, own = vectors["train"][there], labels[there]
        models = [None]
        if KINDS[task.kind].can_learn(own):
            models = [_model(task, name, strength) for strength in _STRENGTHS]
        with one_thread():
            fitted = [_fitted(task, model, known, own) for model in models]
        reached = [_score(inputs, task, predict(vectors["validation"])) for predict in fitted]
        best = fitted[int(np.argmax(reached))]
        for split, of_split in found.items():
            of_split[task.name] = best(vectors[split])
    return found


def _model(task: Task, name: str, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if task.kind == "regression":
        model: Any = Ridge(alpha=1 / strength)
    else:
        # Vectors of words are short, and few of their entries are not 0.
        model = LogisticRegression(C=strength * (100 if name == TF_IDF else 1), max_iter=300)
        model = OneVsRestClassifier(model) if task.kind == "multi_label" else model
    return model if name == TF_IDF else make_pipeline(StandardScaler(), model)


def _fitted(task: Task, model: Any, known: Any, labels: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Fits a model, and returns what makes logits of vectors.

    Without a model they are what is so of the training texts.
    """
    from sklearn.exceptions import ConvergenceWarning

    single = task.kind == "multi_label" and labels.shape[1] == 1
    with warnings.catch_warnings():
        # As good as it gets in so many iterations is good enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "Label .* is present in all training examples")
        if model is not None:
            model.fit(known, labels[:, 0] if single else labels)

    def logits(asked: Any) -> np.ndarray:
        count, classes = asked.shape[0], len(task.classes)
        if task.kind == "regression":
            found = np.zeros(count) if model is None else model.predict(asked)
            return found.reshape(-1, 1).astype(np.float32)
        if task.kind == "multi_label":
            if model is None:
                shares = np.broadcast_to((labels > 0).mean(0), (count, classes))
            else:
                shares = model.predict_proba(asked)[:, -labels.shape[1] :]
        else:
            shares = np.zeros((count, classes))
            if model is None:
                shares += np.bincount(labels, minlength=classes) / max(len(labels), 1)
            else:
                shares[:, model.classes_] = model.predict_proba(asked)
        return KINDS[task.kind].logits(shares)

    return logits


def _predicted(task: Task, logits: np.ndarray) -> np.ndarray:
    return KINDS[task.kind].predicted(logits, task.mean, task.deviation)


def _score(inputs: Inputs, task: Task, logits: np.ndarray) -> float:
    """What a task's logits reach on validation."""
    name, labels = task.name, inputs.split("validation").examples.labels
    asked = {name: labels[name]}, {name: _predicted(task, logits)}, {name: inputs.classes[name]}
    return mean_score(split_metrics(*asked, None))


def _metrics(inputs: Inputs, split: str, logits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    examples = inputs.split(split).examples
    predicted = {name: _predicted(task, logits[name]) for name, task in inputs.tasks.items()}
    return split_metrics(examples.labels, predicted, inputs.classes, examples.groups)


def _measured(
    inputs: Inputs, logits: Mapping[str, Mapping[str, np.ndarray]], folder: Path
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for split, of_split in logits.items():
        found[split] = _metrics(inputs, split, of_split)
        examples = inputs.split(split).examples
        path = folder / f"predictions-{split}.parquet"
        write_predictions(path, examples, of_split, inputs.tasks, inputs.corpus.sources)
    return found
