"""Which parts of the model should be frozen? Every scenario, several seeds, one report.

The default settings are those of the quick study that ``./launch.sh`` runs, on a part of the
default corpus. Of your own data all texts are used, unless a flag limits them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mtl_jax.config.train import DataConfig
from mtl_jax.core.converted import Converted, default
from mtl_jax.freezing.scenarios import usual_scenarios
from mtl_jax.studies.arm_specs import check_arms, files_of, protocol, refuse_nothing_held
from mtl_jax.studies.command import StudyCommand, planned
from mtl_jax.studies.inputs_pool import InputsPool, sizes
from mtl_jax.studies.settings import Arm, Plan, StudySettings, by_seeds


class _Default(int):
    """A number of the quick study that nobody has asked for, told from the same one asked for."""


class _DefaultRate(float):
    """As ``_Default``, of a rate."""


# Few enough sentences for six seeds of five scenarios in some minutes on two cores.
_QUICK = DataConfig(
    max_train_examples=_Default(320),
    max_validation_examples=_Default(320),
    max_test_examples=_Default(1500),
)


_QUICK_ARMS = ("all_frozen", "backbone_frozen", "top_1", "top_2", "none_frozen")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Freezing(StudySettings):
    """Train every scenario with every seed, and report what freezing costs and buys."""

    arms: tuple[str, ...] | None = None
    """scenarios and recipes to compare, or .json files of either; layer_decay is none_frozen \
with lower learning rates for lower layers. By default all_frozen, backbone_frozen, top_1, top_2 \
and none_frozen, and on your own data also bias_only, lora_8, layer_decay and one arm with the \
head of each task frozen"""
    data: Converted[DataConfig | Mapping[str, Any], DataConfig] = default(_QUICK)
    batch_size: int = 16
    """examples per step, over all devices"""
    head_learning_rate: float | None = _DefaultRate(1e-2)
    """peak learning rate of the heads; by default 0.01 in the quick study, which makes few \
steps, and otherwise as in train"""
    epochs: int | None = None
    """as in train"""
    min_steps: int | None = _Default(80)
    """as in train; by default 80 in the quick study, which makes few passes over the backbone"""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = self.data.train_file or self.data.dataset != _QUICK.dataset
        if self.arms is None:
            every = (*usual_scenarios(self.data.tasks, adapters=True), "layer_decay")
            object.__setattr__(self, "arms", every if own else _QUICK_ARMS)
        self._refuse_empty("arms")
        refuse_nothing_held(self.hold_frozen_heads, self.named_arms)
        settled = {
            # The quick study's limits are meant for the default corpus alone.
            name: None if own else int(limit)
            for name in ("max_train_examples", "max_validation_examples", "max_test_examples")
            if isinstance(limit := getattr(self.data, name), _Default)
        }
        object.__setattr__(self, "data", dataclasses.replace(self.data, **settled))
        if isinstance(self.min_steps, _Default):
            object.__setattr__(self, "min_steps", None if own else int(self.min_steps))
        if isinstance(rate := self.head_learning_rate, _DefaultRate):
            object.__setattr__(self, "head_learning_rate", None if own else float(rate))

    @property
    def named_arms(self) -> tuple[str, ...]:
        """What is compared."""
        return self.arms or ()

    def check(self, layers: int) -> None:
        """See ``StudySettings``."""
        check_arms(self.named_arms, layers, self.data.tasks)

    def groups(self, at_once: int) -> Iterator[list[Arm]]:
        """The arms that are trained at once, so many seeds at a time."""

        def arm(name: str, seed: int) -> Arm:
            return self.arm(name, seed, protocol(name, self.workdir))

        return by_seeds(self.named_arms, self.seeds, at_once, arm)


def plan_of(study: Freezing, pool: InputsPool) -> Plan:
    """The study as data; the pool alone keeps what is read for it.

    Raises:
        UserError: The settings are wrong.
    """
    from mtl_jax.studies.report.write import leave_report

    inputs = pool.whole(study)
    study.check(inputs.bert.num_hidden_layers)
    inputs.refuse_long()
    count = len(study.named_arms) * len(study.seeds)
    return Plan(
        workdir=study.workdir,
        record={"study": "freezing", "settings": study.record(), **inputs.record()},
        groups=list(study.groups(study.at_once())),
        report=leave_report,
        settings=study.described("arms"),
        notes=[
            *inputs.notes(),
            f"{count} arms on {sizes(study, pool)}; --max-train-examples, "
            "--max-validation-examples and --max-test-examples set the limits, None lifts them",
        ],
        files=files_of(study.named_arms),
        keep_checkpoints=study.keep_checkpoints,
    )


run = planned(plan_of)
main = StudyCommand(Freezing, __doc__ or "", run, "mtl-jax study freezing")
