"""From a scenario's rules to everything that freezing means, read off one label tree."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.config.lora import Lora, lora_of, refuse_lora
from mtl_jax.config.scenario import scenario_text
from mtl_jax.core.errors import UserError, require_type
from mtl_jax.freezing.lora import factor_paths, plain_paths, with_factors
from mtl_jax.freezing.rules import Rule, assign_labels
from mtl_jax.freezing.scenarios import FROZEN, LORA, lora_rank, scenario_rules

Params = dict[str, Any]
"""A nested dict of arrays."""

# What scenarios train that not every backbone has.
_KINDS: Mapping[str | None, str] = {"bias_only": "bias", "layer_norm_only": "layer norm"}


@dataclasses.dataclass(frozen=True, init=False)
class Partition:
    """Assigns each parameter to an optimizer group, or to the frozen part.

        partition = mtl.Partition(model.params, "top_2")
        trainable, frozen = partition.split(model.params)

    The low-rank factors of a scenario ``lora_r`` are among the leaves, whether or not ``params``
    contains them; ``with_factors`` adds them, as ``TrainStep.init`` does.

    A partition is hashable, so that compiled functions can be looked up by it.

    Attributes:
        labels: ``(path, label)`` of every leaf, sorted by path.
        lora: The low-rank factors that are trained, or None.
    """

    labels: tuple[tuple[str, str], ...]
    lora: Lora | None

    def __init__(
        self,
        params: Params,
        scenario: str | Sequence[Rule],
        *,
        lora_targets: Sequence[str] | None = None,
        lora_alpha: float | None = None,
        lora_dropout: float | None = None,
    ):
        """Labels every leaf of ``params``.

        Args:
            params: All parameters: ``backbone``, and one subtree per task.
            scenario: The name of a scenario, a JSON file of rules, or a list of rules
                ``(pattern, label)``; the first rule that matches a leaf gives its label.
            lora_targets: For a scenario ``lora_r``: see ``TrainConfig``.
            lora_alpha: For a scenario ``lora_r``: see ``TrainConfig``.
            lora_dropout: For a scenario ``lora_r``: see ``TrainConfig``.

        Raises:
            UserError: There is no such scenario, a leaf matches no rule, a rule matches no leaf, or
                the factors are not possible.
        """
        require_type(params, Mapping, "params", "give the parameters of a model, model.params")
        if "backbone" not in params:
            raise UserError(
                "params has no backbone: give all parameters of a model, model.params, and not "
                "those of the encoder alone"
            )
        name = scenario_text(scenario)
        if not isinstance(name, str):
            raise UserError(f"{name!r} is not a scenario: give a name, a file, or a list of rules")
        layers = sum(name.startswith("layer_") for name in params["backbone"])
        rules = scenario_rules(name, layers, [name for name in params if name != "backbone"])
        given = lora_targets, lora_alpha, lora_dropout
        refuse_lora("lora_{}", *given)
        lora = lora_of(lora_rank(name), *given)
        if lora is None and any(each is not None for each in given):
            raise UserError(f"{name} trains no low-rank factors: leave lora_targets and so on out")
        made = self.from_rules(params, rules, lora, name)
        object.__setattr__(self, "labels", made.labels)
        object.__setattr__(self, "lora", lora)

    @classmethod
    def from_labels(
        cls, labels: tuple[tuple[str, str], ...], lora: Lora | None = None
    ) -> Partition:
        """The partition of ``(path, label)`` pairs, sorted by path."""
        made = object.__new__(cls)
        object.__setattr__(made, "labels", labels)
        object.__setattr__(made, "lora", lora)
        return made

    @classmethod
    def from_rules(
        cls,
        params: Params,
        rules: Sequence[Rule],
        lora: Lora | None = None,
        scenario: str | None = None,
    ) -> Partition:
        """Labels every leaf of ``params``, with the factors of ``lora`` and no others.

        Args:
            params: All parameters.
            rules: See ``assign_labels``.
            lora: The factors; None for none.
            scenario: The name that the rules stand for, if any.

        Raises:
            UserError: As of ``assign_labels``; or a target is no kernel; or there is nothing of
                what the scenario trains.
        """
        flat = _flat(params)
        paths = plain_paths(flat)
        if scenario in _KINDS and not any(fnmatchcase(path, rules[0][0]) for path in paths):
            raise UserError(
                f"scenario {scenario!r} has nothing to train in this backbone, which has no "
                f"{_KINDS[scenario]}: use another one"
            )
        factors = factor_paths(flat, lora) if lora else []
        labels = assign_labels([*paths, *factors], rules)
        return cls.from_labels(tuple(sorted(labels.items())), lora)

    def __repr__(self) -> str:
        counts = collections.Counter(label for _, label in self.labels)
        leaves = ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))
        return f"<Partition of {len(self.labels)} leaves: {leaves}>"

    @functools.cached_property
    def tree(self) -> Params:
        """The label tree: labels in the shape of the parameters."""
        return unflatten_dict(dict(self.labels), sep="/")

    @property
    def groups(self) -> tuple[str, ...]:
        """The optimizer groups, sorted."""
        return tuple(sorted({label for _, label in self.labels} - {FROZEN}))

    def with_factors(self, params: Params, key: jax.Array) -> Params:
        """The parameters with the factors of ``lora`` and no others; see ``lora.with_factors``."""
        return with_factors(params, self.lora, key)

    def split(self, params: Params) -> tuple[Params, Params]:
        """``params`` -> (trainable, frozen): each lacks the other's leaves.

        Raises:
            ValueError: Factors are not there.
        """
        flat = _flat(params)
        if lacking := [path for path, label in self.labels if path not in flat and self.lora]:
            raise ValueError(f"there is no {lacking[0]}: see with_factors")
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
        """Returns the same partition with a label per stage, such as ``backbone/layer_5``."""

        def finer(path: str, label: str) -> str:
            return f"{label}/{path.split('/')[1]}" if label in ("backbone", LORA) else label

        finest = ((path, finer(path, label)) for path, label in self.labels)
        return Partition.from_labels(tuple(finest), self.lora)

    def depth(self, num_layers: int) -> int:
        """Returns the number of frozen stages from the bottom, the encoder's ``frozen_depth``.

        0: the embeddings are trained, at least in part; 1 + k: the embeddings and the lowest k
        layers are frozen; 1 + num_layers: all of them are.
        """
        stages = ["backbone/embeddings/", *(f"backbone/layer_{i}/" for i in range(num_layers))]
        trained = [path for path, label in self.labels if label != FROZEN]
        for depth, stage in enumerate(stages):
            if any(path.startswith(stage) for path in trained):
                return depth
        return len(stages)

    @property
    def backbone_frozen(self) -> bool:
        """Whether the pooled vector of a text does not change during training."""
        return all(label == FROZEN for path, label in self.labels if path.startswith("backbone/"))

    @property
    def trains_heads_alone(self) -> bool:
        """Whether only heads are trained."""
        return self.backbone_frozen and bool(self.groups)

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
                f"no learning rate for the label {label!r}: give it one, or label the rule "
                f"{FROZEN} or {' or '.join(names)}"
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
