"""How far a frozen head's predictions drift while the backbone below it trains.

The head keeps its bytes, but what it reads moves away from what it was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special

from mtl_jax.freezing.partition import Params
from mtl_jax.training.evaluator import Evaluator
from mtl_jax.training.inputs import Split


def divergence(before: np.ndarray, now: np.ndarray) -> float:
    """Mean over texts of KL(before || now), in nats; 0 without texts.

    Args:
        before: Logits, float [n, classes].
        now: Logits of the same texts.
    """
    if not len(before):
        return 0.0
    old, new = (scipy.special.log_softmax(x.astype(np.float64), axis=-1) for x in (before, now))
    return float(np.mean(np.sum(np.exp(old) * (old - new), axis=-1)))


@dataclasses.dataclass(frozen=True)
class Reference:
    """What frozen heads predicted at the start of a phase.

    Attributes:
        validation: Per watched task the logits of the validation texts, float32 [n, classes].
        training: The same of the training texts, where they are to be held.
    """

    validation: Mapping[str, np.ndarray]
    training: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Reference:
        """The one of these ``arrays``, which lack what is empty."""
        return cls(arrays.get("validation", {}), arrays.get("training", {}))

    def targets(self, tasks: Sequence[str]) -> dict[str, np.ndarray]:
        """Probabilities of the training texts, per task that is to be held."""
        return {task: scipy.special.softmax(self.training[task], axis=-1) for task in tasks}

    def drift(self, logits: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Per watched task its ``divergence``.

        Args:
            logits: Those of the validation texts now, of all tasks.
        """
        return {task: divergence(before, logits[task]) for task, before in self.validation.items()}

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """What ``Reference.of`` takes."""
        return {"validation": dict(self.validation), "training": dict(self.training)}


def reference(
    evaluator: Evaluator,
    params: Params,
    tasks: Sequence[str],
    validation: Split,
    training: Split | None,
) -> Reference:
    """What frozen heads predict now.

    Args:
        evaluator: The compiled evaluation.
        params: All parameters.
        tasks: Those of the heads.
        validation: The texts to watch them on.
        training: The texts to hold them on, if they are to be held.
    """
    placed = evaluator.runner.replicate(params)

    def logits(split: Split) -> dict[str, np.ndarray]:
        found, _ = evaluator.logits(placed, split.texts)
        return {task: found[task] for task in tasks}

    return Reference(logits(validation), logits(training) if training else {})


def drift_warning(limit: float, drift: Mapping[str, float]) -> str | None:
    """Tells of predictions that have drifted too far; None where they have not.

    Args:
        limit: How far they may, in nats.
        drift: Per watched task how far they have.
    """
    past = {task: far for task, far in drift.items() if far > limit}
    if not past:
        return None
    far = " and ".join(f"that of {task} {value:.3f}" for task, value in past.items())
    return (
        f"a frozen head's predictions have drifted more than {limit:g} nats, {far}: unfreeze the "
        "head, or hold them with --hold-frozen-heads"
    )
