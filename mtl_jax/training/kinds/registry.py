"""The kinds of tasks by name, and by the arrays of their labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_jax.config.tasks import Kind
from mtl_jax.data import kinds as of_labels
from mtl_jax.training.kinds.base import TaskKind
from mtl_jax.training.kinds.multi_label import MultiLabel
from mtl_jax.training.kinds.regression import Regression
from mtl_jax.training.kinds.single_label import SingleLabel

KINDS: Mapping[Kind, TaskKind] = {
    each.name: each for each in (SingleLabel(), MultiLabel(), Regression())
}
"""By name."""


def kind_of(labels: Any) -> TaskKind:
    """The kind of a task from an array of its labels, of numpy or of JAX."""
    return KINDS[of_labels.kind_of(labels)]
