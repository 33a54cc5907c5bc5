"""From a scenario's rules to everything that freezing means, read off one label tree."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.config.scenario import scenario_text
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.rules import Rule, assign_labels
from mtl_jax.freezing.scenarios import FROZEN, scenario_rules

Params = dict[str, Any]
"""A nested dict of arrays."""


@dataclasses.dataclass(frozen=True, init=False)
class Partition:
    """Which parameter belongs to which optimizer group, and which to none.

        partition = mtl.Partition(model.params, "top_2")
        trainable, frozen = partition.split(model.params)

    Hashable, so that whatever is compiled for it can be found again.

    Attributes:
        labels: ``(path, label)`` of every leaf, sorted by path.
    """

    labels: tuple[tuple[str, str], ...]

    def __init__(self, params: Params, scenario: str | Sequence[Rule]):
        """Labels every leaf of ``params``.

        Args:
            params: All parameters: ``backbone``, and each task's head by its name.
            scenario: A scenario's name, a JSON file of rules, or a list of rules:
                ``(pattern, label)``, of which the first that matches a leaf gives its label.

        Raises:
            UserError: There is no such scenario, no rule for a leaf, or a rule for none.
        """
        name = scenario_text(scenario)
        if not isinstance(name, str):
            raise UserError(f"{name!r} is no scenario: give a name, a file, or a list of rules")
        layers = sum(name.startswith("layer_") for name in params["backbone"])
        rules = scenario_rules(name, layers, [name for name in params if name != "backbone"])
        labels = tuple(sorted(assign_labels(_flat(params), rules).items()))
        object.__setattr__(self, "labels", labels)

    @classmethod
    def from_labels(cls, labels: tuple[tuple[str, str], ...]) -> Partition:
        """The partition of ``(path, label)`` pairs, sorted by path."""
        made = object.__new__(cls)
        object.__setattr__(made, "labels", labels)
        return made

    @classmethod
    def from_rules(cls, params: Params, rules: Sequence[Rule]) -> Partition:
        """Labels every leaf of ``params``; see ``assign_labels`` for the errors."""
        return cls.from_labels(tuple(sorted(assign_labels(_flat(params), rules).items())))

    @functools.cached_property
    def tree(self) -> Params:
        """The label tree: labels in the shape of the parameters."""
        return unflatten_dict(dict(self.labels), sep="/")

    @property
    def groups(self) -> tuple[str, ...]:
        """The optimizer groups, sorted."""
        return tuple(sorted({label for _, label in self.labels} - {FROZEN}))

    def split(self, params: Params) -> tuple[Params, Params]:
        """``params`` -> (trainable, frozen): each lacks the other's leaves."""
        flat = _flat(params)
        frozen = {path for path, label in self.labels if label == FROZEN}
        return (
            unflatten_dict({k: v for k, v in flat.items() if k not in frozen}, sep="/"),
            unflatten_dict({k: v for k, v in flat.items() if k in frozen}, sep="/"),
        )

    @staticmethod
    def merge(trainable: Params, frozen: Params) -> Params:
        """The inverse of ``split``."""
        return unflatten_dict({**_flat(trainable), **_flat(frozen)}, sep="/")

    def by_stage(self) -> Partition:
        """The same, with ``backbone`` told apart by stage: ``backbone/layer_5`` ..."""

        def finer(path: str, label: str) -> str:
            return "/".join(path.split("/")[:2]) if label == "backbone" else label

        return Partition.from_labels(
            tuple((path, finer(path, label)) for path, label in self.labels)
        )

    def depth(self, num_layers: int) -> int:
        """How much of the backbone's bottom is frozen, as ``EncoderModule``'s ``frozen_depth``.

        0: the embeddings train (at least in part); 1 + k: they and the k lowest layers are
        frozen; 1 + num_layers: the whole stack is.
        """
        stages = ["backbone/embeddings/", *(f"backbone/layer_{i}/" for i in range(num_layers))]
        trained = [path for path, label in self.labels if label != FROZEN]
        for depth, stage in enumerate(stages):
            if any(path.startswith(stage) for path in trained):
                return depth
        return len(stages)

    @property
    def backbone_frozen(self) -> bool:
        """Whether a text's pooled vector is a fixed function of the text."""
        return all(label == FROZEN for path, label in self.labels if path.startswith("backbone/"))

    def multi_transform(
        self, transforms: Mapping[str, optax.GradientTransformation]
    ) -> optax.GradientTransformation:
        """``optax.multi_transform`` over the trainable partition.

        The frozen leaves are not in the tree that it sees, so they have neither gradient
        nor state; a transform is taken by the longest of its names that begins the label
        (``backbone`` serves ``backbone/layer_5``).
        """
        trainable_labels, _ = self.split(self.tree)
        chosen: dict[Hashable, optax.GradientTransformation] = {
            label: transforms[longest_prefix(label, transforms)] for label in self.groups
        }
        return optax.multi_transform(chosen, trainable_labels)


def _flat(params: Params) -> dict[str, Any]:
    return dict(flatten_dict(params, sep="/"))


def longest_prefix(label: str, names: Mapping[str, Any]) -> str:
    """The longest of ``names`` that begins a label: ``backbone`` serves ``backbone/layer_5``.

    Raises:
        UserError: None does.
    """
    prefix = label
    while prefix not in names:
        prefix = prefix.rpartition("/")[0]
        if not prefix:
            raise UserError(
                f"no learning rate for the label {label!r}: label the rule {FROZEN} or "
                f"{' or '.join(names)}"
            )
    return prefix


def digest(params: Params) -> str:
    """SHA-256 over paths, shapes, dtypes and bytes, independent of the order of insertion."""
    hasher = hashlib.sha256()
    for path, leaf in sorted(_flat(params).items()):
        array = np.asarray(leaf)
        hasher.update(f"{path} {array.dtype.name} {array.shape}\n".encode())
        hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


class Stages:
    """A backbone's parameters by stage (``embeddings``, ``layer_0`` ...), each hashed once.

    Attributes:
        params: The parameters, on the host; they must not change.
    """

    def __init__(self, params: Params):
        self.params = params
        self._digests: dict[str, str] = {}

    def digest(self, stage: str) -> str:
        """``digest`` of one stage."""
        if stage not in self._digests:
            self._digests[stage] = digest({stage: self.params[stage]})
        return self._digests[stage]


def state_bytes(opt_state: optax.OptState) -> int:
    """Bytes of every array in an optimizer state, step counters included."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(opt_state) if hasattr(leaf, "nbytes"))


def certificate(
    partition: Partition, params: Params, opt_state: optax.OptState, frozen_before: str
) -> dict[str, Any]:
    """The proof that a run leaves: what was trained, and that the rest did not change.

    Args:
        partition: The run's partition.
        params: All parameters as they are now.
        opt_state: The optimizer's state now.
        frozen_before: ``digest`` of the frozen leaves at the start.

    Returns:
        A JSON object: per label the number of leaves and parameters, the bytes of the
        optimizer state, and the digest of the frozen leaves before and after.
    """
    flat = _flat(params)
    per_label: dict[str, dict[str, int]] = {}
    for path, label in partition.labels:
        entry = per_label.setdefault(label, {"leaves": 0, "parameters": 0})
        entry["leaves"] += 1
        entry["parameters"] += int(flat[path].size)
    after = digest(partition.split(params)[1])
    return {
        "labels": per_label,
        "trainable_parameters": sum(
            entry["parameters"] for label, entry in per_label.items() if label != FROZEN
        ),
        "optimizer_state_bytes": state_bytes(opt_state),
        "frozen_digest_before": frozen_before,
        "frozen_digest_after": after,
        "frozen_digest_unchanged": after == frozen_before,
    }
