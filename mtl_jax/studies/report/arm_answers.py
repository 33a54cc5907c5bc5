"""What the runs of a study's arms have predicted, read from their folders."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.config.data import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import Corpus, load_corpus
from mtl_jax.runs.predictions import Predictions
from mtl_jax.runs.workdir import Workdir
from mtl_jax.studies.arm_predictions import predictions_of
from mtl_jax.studies.best_run import run_folder
from mtl_jax.studies.ensembles import members
from mtl_jax.studies.report.prediction_sections import Answers
from mtl_jax.studies.stats.results import Result, evaluation_split


def answers_of(
    context: Mapping[str, Any], results: Sequence[Result], arm: str, setting: Any = None
) -> Answers | None:
    """The predictions of an arm on the split that the report is about.

    Args:
        context: See ``write.write_report``; ``folder`` is that of the study, and ``corpora`` the
            data that are open already, by the whole of their ``DataConfig``.
        results: Lines of ``results.jsonl``.
        arm: The arm.
        setting: In which setting; None of a study without.

    Returns:
        None where no run of it has kept its predictions, or not those of the same texts.
    """
    if (folder := context.get("folder")) is None:
        return None
    split = evaluation_split(results)
    found: dict[str, dict[int, Predictions]] = {split: {}, "validation": {}}
    lines = {line["seed"]: line for line in members(results, arm, setting=setting)}
    for seed, line in lines.items():
        for name, of_seed in found.items():
            with contextlib.suppress(UserError):
                if (predictions := predictions_of(folder, line, name)) is not None:
                    of_seed[seed] = predictions
    runs = found[split]
    if not runs or len({tuple(run.examples.tolist()) for run in runs.values()}) > 1:
        return None
    seed, first = next(iter(runs.items()))
    run = run_folder(folder, lines[seed])
    texts = functools.partial(_texts, run, split, first, context.get("corpora") or {})
    return Answers(arm, split, runs, found["validation"], texts)


def _texts(
    run: Path,
    split: str,
    found: Predictions,
    corpora: Mapping[DataConfig, Corpus],
    places: Iterable[int],
) -> Mapping[int, str]:
    """Texts by their places in predictions; none where the data are gone, or have changed."""
    try:
        record = Workdir(run).config()
        data = DataConfig(**record["settings"]["data"])
        corpus = corpora.get(data.whole()) or load_corpus(data)
        if corpus.fingerprint != record["data"]["fingerprint"]:
            return {}
        return texts_of(corpus, split, found, places)
    except (UserError, KeyError, TypeError):
        return {}


def texts_of(
    corpus: Corpus, split: str, found: Predictions, places: Iterable[int]
) -> dict[int, str]:
    """The texts that predictions are of, by their places; without those the data no longer have.

    Args:
        corpus: The data that the run was trained on.
        split: Which split the predictions are of.
        found: The predictions.
        places: Which of them, from 0.

    Raises:
        UserError: The data can't be read.
    """
    examples = corpus.read(split)
    rows = np.arange(len(examples)) if examples.rows is None else examples.rows
    numbers = [None] * len(rows) if examples.sources is None else examples.sources.tolist()
    names = [None if number is None else corpus.sources[number] for number in numbers]
    at = {key: i for i, key in enumerate(zip(names, rows.tolist(), strict=True))}
    texts = {}
    for place in places:
        data_set = None if found.data_sets is None else str(found.data_sets[place])
        if (there := at.get((data_set, int(found.examples[place])))) is not None:
            texts[place] = str(examples.texts[there])
    return texts
