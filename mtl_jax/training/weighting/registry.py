"""The methods by name, and where one of them can do nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from mtl_jax.config.optimizer import WEIGHTINGS
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.partition import Partition
from mtl_jax.training.weighting import methods
from mtl_jax.training.weighting.base import Weighting
from mtl_jax.training.weighting.methods.fixed import Fixed


def _method(name: str) -> type[Weighting]:
    """The class in a file of ``methods`` that has the file's name."""
    module = importlib.import_module(f"{methods.__name__}.{name}")
    found = [each for each in vars(module).values() if getattr(each, "name", None) == name]
    return next(each for each in found if isinstance(each, type) and issubclass(each, Weighting))


METHODS: Mapping[str, type[Weighting]] = {name: _method(name) for name in WEIGHTINGS}
"""The methods by name."""


def refuse_weighting(name: str, what: str) -> None:
    """Refuses what is no method.

    Raises:
        UserError: It is none; ``what`` is what names it.
    """
    if name not in METHODS:
        raise UserError(f"{what} {name!r} is unknown: use one of {', '.join(METHODS)}")


def make_weighting(name: str, steps_per_epoch: int) -> Weighting:
    """The method of that name.

    Raises:
        UserError: There is none.
    """
    refuse_weighting(name, "--weighting")
    return METHODS[name].of_epochs(steps_per_epoch)


def useless(
    method: Weighting, partition: Partition, task_weights: Mapping[str, float], steps: int
) -> str | None:
    """Why a method can do nothing here, and what to do; None where it can.

    Args:
        method: The method.
        partition: What is trained.
        task_weights: The user's, by task; 0 for one without labels.
        steps: Of the phase at most.
    """
    if isinstance(method, Fixed):
        return None
    flag = f"--weighting {method.name}"
    if not partition.groups:
        return f"nothing is trained: {flag} has no effect"
    out = [task for task, weight in task_weights.items() if weight == 0]
    if len(task_weights) - len(out) < 2:
        words = "{} has weight 0 or no training label"
        why = words.format(" and ".join(out)) if out else "there is one task"
        return f"{flag} has no effect, for {why}: train for several tasks, or leave {flag} out"
    remedy = "use a scenario that trains a part of the backbone, or --weighting fixed"
    if partition.backbone_frozen and method.compares_gradients:
        return f"{flag} has no effect, for no parameter that is trained is shared: {remedy}"
    if partition.backbone_frozen:
        return (
            f"{flag} can only scale the gradient of each head, which Adam all but undoes, for no "
            f"parameter that is trained is shared: {remedy}"
        )
    if steps <= method.idle_steps:
        return (
            f"{flag} has no effect, for it begins anew in each phase, after {method.idle_steps} "
            f"steps, two epochs, and this one has {steps}: raise --epochs, or use another method"
        )
    return None
