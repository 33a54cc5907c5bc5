"""How far a frozen head's predictions drift while the backbone below it trains.

The head keeps its bytes, but what it reads moves away from what it was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.config.tasks import Task
from mtl_jax.freezing.partition import Params
from mtl_jax.training.evaluator import Evaluator
from mtl_jax.training.inputs import Split
from mtl_jax.training.kinds.registry import KINDS


@dataclasses.dataclass(frozen=True)
class Reference:
    """What frozen heads predicted at the start of a phase.

    Attributes:
        validation: Per watched task the logits of the validation texts, float32 [n, outputs].
        training: The same of the training texts, where they are to be held.
    """

    validation: Mapping[str, np.ndarray]
    training: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Reference:
        """The one of these ``arrays``, which lack what is empty."""
        return cls(arrays.get("validation", {}), arrays.get("training", {}))

    def targets(self, tasks: Sequence[Task]) -> dict[str, np.ndarray]:
        """What the training texts of each task that is to be held are held at."""
        return {task.name: KINDS[task.kind].targets(self.training[task.name]) for task in tasks}

    def drift(
        self, logits: Mapping[str, np.ndarray], tasks: Mapping[str, Task]
    ) -> dict[str, float]:
        """Per watched task the ``TaskKind.divergence`` of its predictions.

        Args:
            logits: Those of the validation texts now, of all tasks.
            tasks: The tasks, by name.
        """
        return {
            name: KINDS[tasks[name].kind].divergence(before, logits[name])
            for name, before in self.validation.items()
        }

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
