"""What raises quality? Soft labels, an auxiliary task, averaged weights, R-Drop, longer training.

Every arm is full fine-tuning with one change, and is compared with ``none_frozen`` of the same
seed, on validation first. Names joined with ``+``, such as ``soft_labels+r_drop``, make several
changes at once. The report shows the ensemble of the seeds of each arm beside the single models.

``soft_labels`` trains on the share of the raters that are of each sentiment, and
``soft_labels_of_mean`` on how probable each is for the mean of as many other raters, which is what
the label is made of; ``mean_rating`` has the mean rating as a regression beside the two tasks.
These are of the default corpus. ``layer_decay_ema`` has lower rates for lower layers, and averages
the weights; ``r_drop`` passes each text twice; ``longer`` has twice as many passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mtl_jax.config.optimizer import EPOCHS
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.studies.arm_specs import refuse_nothing_held
from mtl_jax.studies.command import StudyCommand, planned
from mtl_jax.studies.inputs_pool import sizes
from mtl_jax.studies.settings import Arm, Plan, StudySettings, arm_folder, by_seeds
from mtl_jax.studies.stats.results import REFERENCE

if TYPE_CHECKING:
    from mtl_jax.studies.inputs_pool import InputsPool

_JOINED = "+"


@dataclasses.dataclass(frozen=True)
class Change:
    """What an arm changes of full fine-tuning.

    Attributes:
        settings: Of ``TrainConfig``; a tuple is added to that of the study.
        data: Of ``DataConfig``; likewise.
        passes: What the passes over the training texts are multiplied by.
        of_sentences: Whether it needs what the default corpus has.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    passes: int = 1
    of_sentences: bool = False


def _soft(column: str) -> Change:
    return Change(data={"soft_labels": (f"sentiment={column}",)}, of_sentences=True)


ARMS: Mapping[str, Change] = {
    REFERENCE: Change(),
    "soft_labels": _soft("sentiment_raters"),
    "soft_labels_of_mean": _soft("sentiment_other_raters"),
    "mean_rating": Change(
        settings={"task_weights": ("rating=0.5",)},
        data={"label_columns": ("rating=rating",), "task_kinds": ("rating=regression",)},
        of_sentences=True,
    ),
    "layer_decay_ema": Change(settings={"layer_decay": 0.8, "ema": 0.999}),
    "r_drop": Change(settings={"r_drop": 1.0}),
    "longer": Change(passes=2),
}
"""By name; those of the default."""


def changes_of(arm: str) -> list[Change]:
    """The changes of an arm, of which names joined with ``+`` have several.

    Raises:
        UserError: There is no such arm, or two of its changes exclude each other.
    """
    names = arm.split(_JOINED)
    if unknown := [name for name in names if name not in ARMS]:
        raise UserError(
            f"unknown arm {unknown[0]!r}: use {', '.join(ARMS)}, or several joined with {_JOINED}"
        )
    found = [ARMS[name] for name in dict.fromkeys(names)]
    given: dict[str, str] = {}
    for name, change in zip(dict.fromkeys(names), found, strict=True):
        for field in [*change.settings, *(f for f in change.data if f == "soft_labels")]:
            if field in given:
                raise UserError(f"arm {arm!r}: {given[field]} and {name} both set {field}")
            given[field] = name
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality(StudySettings):
    """Change one thing at a time of full fine-tuning, and report what it brings."""

    arms: tuple[str, ...] | None = None
    """what to compare with none_frozen: soft_labels, soft_labels_of_mean, mean_rating, \
layer_decay_ema, r_drop, longer, or several joined with +; by default each, and of one's own data \
those that need nothing of the default corpus"""
    epochs: int = EPOCHS
    """passes over the training examples; the arm longer makes twice as many"""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = bool(self.data.train_file) or self.data.dataset != "sentences"
        if self.arms is None:
            names = tuple(
                name for name, change in ARMS.items() if not (own and change.of_sentences)
            )
            object.__setattr__(self, "arms", names)
        self._refuse_empty("arms")
        # The reference of all differences.
        object.__setattr__(self, "arms", tuple(dict.fromkeys((REFERENCE, *self.named_arms))))
        refuse_nothing_held(self.hold_frozen_heads, self.named_arms)
        for arm in self.named_arms:
            if own and any(change.of_sentences for change in changes_of(arm)):
                raise UserError(
                    f"arm {arm!r} needs what the raters of the default corpus say: leave it out"
                )
            _ = self.config(arm, self.seeds[0])

    @property
    def named_arms(self) -> tuple[str, ...]:
        """What is compared."""
        return self.arms or ()

    def config(self, arm: str, seed: int) -> TrainConfig:
        """The run of an arm with a seed.

        Raises:
            UserError: The data have not what it changes.
        """
        changes, data = changes_of(arm), self.drawn(seed)
        own: dict[str, Any] = {"scenario": REFERENCE}
        for change in changes:
            more = {field: getattr(data, field) + value for field, value in change.data.items()}
            data = dataclasses.replace(data, **more)
            for field, value in change.settings.items():
                added = isinstance(value, tuple)
                own[field] = getattr(self, field) + value if added else value
            if change.passes != 1:
                own["epochs"] = change.passes * self.epochs
        workdir = arm_folder(self.workdir, arm, seed, {})
        shared = {**self.of_a_run(), **own, "data": data}
        return TrainConfig(**shared, workdir=workdir, seed=seed)

    def groups(self) -> Iterator[list[Arm]]:
        """The arms that are trained at once: seed by seed."""
        return by_seeds(
            self.named_arms,
            self.seeds,
            self.at_once(),
            lambda arm, seed: Arm(arm, self.config(arm, seed)),
        )


def plan_of(study: Quality, pool: InputsPool) -> Plan:
    """The study as data; the pool alone keeps what is read for it.

    Raises:
        UserError: The settings are wrong.
    """
    from mtl_jax.studies.report.quality_report import STUDY, leave_report

    inputs = pool.whole(study)
    inputs.refuse_long()
    count = len(study.named_arms) * len(study.seeds)
    return Plan(
        workdir=study.workdir,
        record={"study": STUDY, "settings": study.record(), **inputs.record()},
        groups=list(study.groups()),
        report=leave_report,
        settings=study.described("arms"),
        notes=[*inputs.notes(), f"{count} arms on {sizes(study, pool)}"],
        keep_checkpoints=study.keep_checkpoints,
    )


run = planned(plan_of)
main = StudyCommand(Quality, __doc__ or "", run, "mtl-jax study quality")
