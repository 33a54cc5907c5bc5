"""What does a larger backbone buy, and how much of it must be trained?

The same scenarios are trained with the same seeds on several checkpoints, and their quality is
shown against their cost. A checkpoint that can't be reached is skipped and named, and the exit
status is then 1. Run the same command again when it can be reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mtl_jax.config.model import DEFAULT_BACKBONE
from mtl_jax.core.paths import expanded
from mtl_jax.studies.arm_specs import check_arms, files_of, protocol, refuse_nothing_held
from mtl_jax.studies.command import StudyCommand, planned
from mtl_jax.studies.settings import ANY_DEPTH, Arm, Plan, StudySettings, by_seeds

if TYPE_CHECKING:
    from mtl_jax.studies.inputs_pool import InputsPool


SETTING = "backbone"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbones(StudySettings):
    """Train the same scenarios on several checkpoints, and report quality against cost."""

    backbones: tuple[str, ...] = (
        DEFAULT_BACKBONE,
        "bert-base-uncased",
        "bert-base-multilingual-cased",
        "bert-large-uncased",
    )
    """checkpoints to compare, instead of --backbone: folders, or names on the Hugging Face hub"""
    arms: tuple[str, ...] = ("backbone_frozen", "top_2", "none_frozen")
    """scenarios, recipes, or .json files of either, to train on each checkpoint"""
    epochs: int | None = None
    """as in train, so that heads alone, whose passes are nearly free, make enough steps"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_empty("backbones", "arms")
        refuse_nothing_held(self.hold_frozen_heads, self.arms)
        folders = (str(expanded(name).absolute()) for name in self.backbones)
        names = zip(self.backbones, folders, strict=True)
        known = (folder if Path(folder).is_dir() else name for name, folder in names)
        object.__setattr__(self, "backbones", tuple(dict.fromkeys(known)))

    def check(self, layers: int) -> None:
        """See ``StudySettings``; the depths of the backbones are known when they are read."""
        check_arms(self.arms, max(layers, ANY_DEPTH), self.data.tasks)

    def groups(self) -> Iterator[list[Arm]]:
        """The arms that are trained at once: one backbone after the other, as each is large."""
        for backbone in self.backbones:

            def arm(name: str, seed: int, backbone: str = backbone) -> Arm:
                own = {"backbone": backbone, **protocol(name, self.workdir)}
                return self.arm(name, seed, own, {SETTING: backbone})

            yield from by_seeds(self.arms, self.seeds, self.at_once(), arm)


def plan_of(study: Backbones, _pool: InputsPool) -> Plan:
    """The study as data. The digest of each backbone's weights is in the lines of its results.

    Raises:
        UserError: The settings are wrong.
    """
    from mtl_jax.data.corpus import load_corpus
    from mtl_jax.studies.report.backbones_report import leave_report

    study.check(ANY_DEPTH)
    corpus = load_corpus(study.data)
    findings = corpus.check()
    settings = {name: value for name, value in study.record().items() if name != "backbone"}
    return Plan(
        workdir=study.workdir,
        record={
            "study": "backbones",
            "settings": settings,
            "data": {"name": corpus.name, "fingerprint": corpus.fingerprint},
        },
        groups=list(study.groups()),
        report=leave_report,
        settings=study.described("backbone", "arms"),
        notes=[*corpus.notes, *map(str, findings)],
        files=files_of(study.arms),
        keep_checkpoints=study.keep_checkpoints,
    )


run = planned(plan_of)
main = StudyCommand(Backbones, __doc__ or "", run, "mtl-jax study backbones")
