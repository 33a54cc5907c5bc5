"""From how many sentences on does unfreezing pay? Is gradual unfreezing better than at once?

Every depth from a frozen backbone to full fine-tuning is trained, and so are the recipes, on each
of several numbers of sentences. With the same number of sentences all arms make the same number of
passes over them, and so of updates; a recipe divides its passes among its phases. There are three
exceptions: ``auto`` may end early, a phase that trains one task skips the texts without a label for
it, and a recipe from a file makes the passes that the file states.

Equal updates are not equal cost. ``backbone_frozen_equal_cost`` and ``top_k_equal_cost`` make as
many more passes as the training FLOPs of ``none_frozen`` allow, at most ten times as many. So each
question is answered twice: at equal updates and at equal cost.

Gradual unfreezing has a learning rate for each layer and a schedule of its own. ``at_once`` is full
fine-tuning with these rates and this schedule, so that the two differ only in the phases.
Published results disagree on which is better: FinBERT (Araci 2019, arXiv:1908.10063) and ULMFiT
(Howard & Ruder 2018, arXiv:1801.06146) find gradual unfreezing better, T5 (Raffel et al. 2020,
arXiv:1910.10683, section 3.5.1) finds it slightly worse.

On few sentences, ``--epochs`` passes are too few steps for the backbone to change. Small sets
therefore get more passes, until there are ``--min-steps`` steps. (Mosbach et al. 2021,
arXiv:2006.04884, find that much of the instability on small sets comes from training that
ended too early.)

``only_layer_i`` trains the heads and layer i alone. If higher layers are more task-specific, then
the highest layer alone does more than the lowest layer alone.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mtl_jax.core.errors import UserError
from mtl_jax.studies.arm_specs import (
    EQUAL_COST,
    NOTHING_HELD,
    at_equal_updates,
    check_arms,
    files_of,
    in_study,
    protocol,
    refuse_nothing_held,
)
from mtl_jax.studies.command import StudyCommand, planned
from mtl_jax.studies.settings import Arm, Plan, StudySettings, by_seeds

if TYPE_CHECKING:
    from mtl_jax.studies.inputs_pool import InputsPool

SETTING = "max_train_examples"
AT_ONCE = "at_once"
RECIPES = ("gradual_unfreezing", "top_down_2", "lp_ft", "auto")
_ONLY_LAYER = re.compile(r"only_layer_(\d+)")
_CHEAPER = re.compile(rf"(?:backbone_frozen|top_(\d+)){EQUAL_COST}")
# Times the passes of the others: updates of heads on kept vectors cost next to nothing.
_MOST_TIMES = 10
# A layer's forward pass costs half of its backward pass.
_TRAINED, _KEPT = 3, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unfreezing(StudySettings):
    """Train every depth and recipe on few and on many sentences, and compare them."""

    sizes: tuple[int | None, ...] = (64, 256, 1024)
    """numbers of training sentences; None for all"""
    seeds: tuple[int, ...] = tuple(range(8))
    """random seeds; each arm is trained once with each"""
    arms: tuple[str, ...] = ()
    """scenarios, recipes, .json files of either; at_once: none_frozen with the learning rates of \
gradual unfreezing; only_layer_i: the heads and one layer; backbone_frozen_equal_cost and \
top_k_equal_cost: with more passes, for the cost of none_frozen. By default backbone_frozen, every \
top_k, none_frozen, at_once, the recipes, the lowest and the highest layer alone, and \
backbone_frozen and the top third of the layers at equal cost"""
    epochs: int = 3
    """passes over the training examples"""
    min_steps: int = 150
    """minimum number of steps; a small set gets more passes than --epochs to reach it"""
    batch_size: int = 16
    """examples per step, over all devices"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_empty("sizes")
        for size in self.sizes:
            if size is not None and size < 1:
                raise UserError(f"--sizes {size} must be at least 1")
        if self.min_steps < 0:
            raise UserError(f"--min-steps {self.min_steps} must not be negative")
        object.__setattr__(self, "arms", tuple(dict.fromkeys(self.arms)))

    def named_arms(self, layers: int) -> tuple[str, ...]:
        """The arms for a backbone of so many layers.

        Raises:
            UserError: There is no such arm.
        """
        depths = [f"top_{k}" for k in range(1, layers + 1)]
        alone = dict.fromkeys((f"only_layer_{0}", f"only_layer_{layers - 1}"))
        recipes = [name for name in RECIPES if layers > 1 or name != "top_down_2"]
        ends = ("backbone_frozen", *depths, "none_frozen", AT_ONCE)
        few = range(1, max(layers // 3, 1) + 1)
        cheap = ("backbone_frozen", *(f"top_{k}" for k in few if k < layers))
        at_cost = tuple(f"{name}{EQUAL_COST}" for name in cheap)
        arms = self.arms or (*ends, *recipes, *alone, *at_cost)
        refuse_nothing_held(self.hold_frozen_heads, arms)
        for arm in arms:
            layer = _ONLY_LAYER.fullmatch(arm)
            if layer and int(layer.group(1)) >= layers:
                raise UserError(
                    f"arm {arm!r} does not fit the backbone's {layers} layers: use only_layer_0 to "
                    f"only_layer_{layers - 1}"
                )
        others = [
            at_equal_updates(arm) if _CHEAPER.fullmatch(arm) else arm
            for arm in arms
            if not _ONLY_LAYER.fullmatch(arm)
        ]
        own = ("only_layer_i", f"backbone_frozen{EQUAL_COST}", f"top_k{EQUAL_COST}")
        check_arms(others, layers, self.data.tasks, own)
        return arms

    def check(self, layers: int) -> None:
        """See ``StudySettings``."""
        self.named_arms(layers)

    def limits(self, texts: int) -> dict[int, int | None]:
        """Per number of training sentences, of ``texts`` there are, the limit that keeps them."""
        found = {texts if size is None else min(size, texts): size for size in self.sizes}
        return {
            count: self.data.max_train_examples if count == texts else count
            for count in sorted(found)
        }

    def epochs_of(self, sentences: int) -> int:
        """Passes over so many sentences: ``epochs``, or more until there are ``min_steps``."""
        steps_of_one = math.ceil(sentences / self.batch_size)
        return max(self.epochs, math.ceil(self.min_steps / steps_of_one))

    def epochs_at_cost(self, arm: str, sentences: int, layers: int) -> int:
        """Passes of an arm that cost what the passes of ``none_frozen`` do; of others the same.

        Counted in forward passes of a layer: three for a pass that trains it, and one in all for
        a frozen layer, whose activations are kept. Heads cost nothing beside them.

        Args:
            arm: Its name.
            sentences: Training sentences.
            layers: Of the backbone.
        """
        epochs, cheaper = self.epochs_of(sentences), _CHEAPER.fullmatch(arm)
        if not cheaper:
            return epochs
        trained = int(cheaper.group(1) or 0)
        left = _TRAINED * layers * epochs - _KEPT * (layers - trained)
        most = _MOST_TIMES * epochs
        return min(left // (_TRAINED * trained), most) if trained else most

    def groups(self, layers: int, texts: int) -> Iterator[list[Arm]]:
        """The arms that are trained at once: size by size, so that each size is read once."""
        for sentences, limit in self.limits(texts).items():
            limits = {"max_train_examples": limit}

            def arm(name: str, seed: int, sentences: int = sentences, limits: Any = limits) -> Arm:
                passes = self.passes(self.epochs_at_cost(name, sentences, layers))
                own = {**passes, "data": self.drawn(seed, **limits), **self._protocol(name)}
                return self.arm(name, seed, own, {SETTING: sentences})

            yield from by_seeds(self.named_arms(layers), self.seeds, self.at_once(**limits), arm)

    def _protocol(self, arm: str) -> dict[str, Any]:
        if _ONLY_LAYER.fullmatch(arm):
            return {"scenario": in_study(self.workdir, rules_file(arm)), **NOTHING_HELD}
        return protocol(at_equal_updates(arm), self.workdir)


def rules_file(arm: str) -> str:
    """Where in the study's folder the rules of an ``only_layer_i`` are."""
    return f"rules/{arm}.json"


def only_layer_rules(arm: str) -> list[list[str]]:
    """The rules of ``only_layer_i``: all heads and layer i train."""
    layer = arm.removeprefix("only_")
    return [
        [f"backbone/{layer}/*", "backbone"],
        ["backbone/*", "frozen"],
        ["*", "head"],
    ]


def plan_of(study: Unfreezing, pool: InputsPool) -> Plan:
    """The study as data; the pool alone keeps what is read for it.

    Raises:
        UserError: The settings are wrong.
    """
    from mtl_jax.studies.report.unfreezing_report import leave_report

    inputs = pool.whole(study)
    drawn = dataclasses.replace(study, data=study.drawn(study.seeds[0]))
    layers, texts = inputs.bert.num_hidden_layers, len(pool.get(drawn).corpus.places("train"))
    arms = study.named_arms(layers)
    inputs.refuse_long()
    sizes = study.limits(texts)
    words = ", ".join(f"{count:,} with {study.epochs_of(count)}" for count in sizes)
    note = f"training sentences, with passes over them: {words}"
    for arm in filter(_CHEAPER.fullmatch, arms):
        own = ", ".join(f"{study.epochs_at_cost(arm, count, layers)}" for count in sizes)
        note += f"; {arm} with {own}"
    rules = {rules_file(arm): only_layer_rules(arm) for arm in arms if _ONLY_LAYER.fullmatch(arm)}
    return Plan(
        workdir=study.workdir,
        record={"study": "unfreezing", "settings": study.record(), **inputs.record()},
        groups=list(study.groups(layers, texts)),
        report=leave_report,
        settings=study.described("sizes", "arms") | {"passes": note},
        notes=[*inputs.notes(), note],
        files=rules | files_of(arms),
        keep_checkpoints=study.keep_checkpoints,
    )


run = planned(plan_of)
main = StudyCommand(Unfreezing, __doc__ or "", run, "mtl-jax study unfreezing")
