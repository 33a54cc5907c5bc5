"""What each layer of a trained backbone does: measured by undoing it, and by probing it.

A layer is rolled back by giving it its pre-trained weights again, all else as it was trained: what
the score loses is what that layer has learned for the tasks (Zhang, Bengio & Singer, "Are All
Layers Created Equal?", JMLR 23, 2022, re-initialization to the first checkpoint; of BERT: Merchant
et al., "What Happens To BERT Embeddings During Fine-tuning?", BlackboxNLP 2020). It is probed by
the nearest neighbours among what it makes of the training texts, which update no weight, before and
after training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mtl_jax.freezing.lora import merge_lora
from mtl_jax.freezing.partition import Params
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.evaluator import neighbour_probe
from mtl_jax.training.inputs import Split
from mtl_jax.training.kinds.base import Metrics


def layer_roles(run: PhaseRun, params: Params) -> dict[str, dict[str, Metrics]] | None:
    """Measures each layer on validation, with the scores alone.

    Args:
        run: In any phase.
        params: All parameters.

    Returns:
        Per layer, ``layer_0`` …, the scores of each task: ``rolled_back``, with that layer reset;
        ``probe``, of its vectors; and ``probe_before``, of those of the pre-trained backbone. None
        where no layer has other weights than before.
    """
    params = merge_lora(params)
    before, names = run.inputs.backbone, [f"layer_{i}" for i in range(_layers(run))]
    if all(_same(params["backbone"][name], before[name]) for name in names):
        return None
    # From the ids, whatever is kept of them: what is kept is of other layers than these.
    training, validation = run.inputs.split("train"), run.inputs.split("validation")
    replicate, classes = run.evaluator.runner.replicate, run.inputs.classes

    def reset(name: str) -> Metrics:
        backbone = {**params["backbone"], name: before[name]}
        placed = replicate({**params, "backbone": backbone})
        return _scores(run.evaluator.metrics(placed, validation, classes))

    def probes(backbone: Mapping[str, Any]) -> dict[str, Metrics]:
        placed = replicate({**params, "backbone": backbone})
        found = {}
        for layer, name in enumerate(names):
            # The states at depth 1 are what the embeddings make.
            known, asked = (
                _with_vectors(split, run.evaluator.pooled(placed, split.texts, depth=layer + 2))
                for split in (training, validation)
            )
            found[name] = _scores(neighbour_probe(known, asked, classes))
        return found

    return {
        "rolled_back": {name: reset(name) for name in names},
        "probe": probes(params["backbone"]),
        "probe_before": probes(before),
    }


def _layers(run: PhaseRun) -> int:
    return run.inputs.bert.num_hidden_layers


def _same(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _with_vectors(split: Split, vectors: np.ndarray) -> Split:
    return dataclasses.replace(split, texts=dataclasses.replace(split.texts, pooled=vectors))


def _scores(metrics: Metrics) -> Metrics:
    """Of each task the metric that it is judged by."""
    return {
        task: {name: of_task[name] for name in ("macro_f1", "r2") if name in of_task}
        for task, of_task in metrics.items()
    }
