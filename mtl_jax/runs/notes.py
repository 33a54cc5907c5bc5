"""What is told of a run before it trains and after: settings of no use, phases that are short."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.config.optimizer import EPOCHS
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.console import say
from mtl_jax.core.names import shown
from mtl_jax.data.packing.waste import MOST_PADDING, mending_batch_size
from mtl_jax.freezing.phase import untaken
from mtl_jax.runs.phase_plan import PhasePlan
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.text_baseline import in_words, shortfalls

# In fewer, Adam, which moves a parameter by about its rate in each, hardly trains anything, and a
# tenth of them is no warm-up.
FEWEST_STEPS = 10


def told_once(run: PhaseRun) -> None:
    """Says what is to be said of the data and the settings, whichever seeds are trained."""
    settings = run.config, run.plans
    for note in (
        *run.inputs.notes(),
        *without_effect(*settings),
        *lengths(*settings),
        *short_phases(*settings),
        *mostly_padding(run),
        *evened_classes(run),
        in_words(run.inputs.text_baseline),
    ):
        say(note)


def learned_too_little(result: Any) -> list[str]:
    """In what a run that trained anything has learned less than a bag of words tells.

    Args:
        result: Of the run; of a failure nothing is told.
    """
    if not isinstance(result, Mapping) or not result["trainable_parameters"]:
        return []
    return shortfalls(result["validation"], result["text_baseline"])


def short_phases(config: TrainConfig, plans: Sequence[PhasePlan]) -> list[str]:
    """A warning that names the phases of fewer than ``FEWEST_STEPS`` steps, where there are any."""
    short = [i for i, plan in enumerate(plans) if 0 < plan.steps < FEWEST_STEPS]
    if not short:
        return []
    steps = [f"{plans[i].steps} step{'' if plans[i].steps == 1 else 's'}" for i in short]
    if config.recipe is None:
        told = [f"{config.name} takes {steps[0]}"]
    else:
        scenarios = [f"phase {i + 1} ({plans[i].phase.scenario})" for i in short]
        told = [f"{name} takes {count}" for name, count in zip(scenarios, steps, strict=True)]
    remedy = f"raise their epochs or steps in {config.recipe}"
    if config.recipe is None or not config.recipe.endswith((".json", ".py")):
        # Each has the same part of the epochs of the run, however many these are.
        of_run = config.epochs or (plans[short[0]].phase.epochs if not config.recipe else EPOCHS)
        needed = [
            FEWEST_STEPS * (of_run or 1) / ((plans[i].phase.epochs or 1) * plans[i].batches.steps)
            for i in short
        ]
        remedy = f"--epochs {math.ceil(round(max(needed), 6))} gives {FEWEST_STEPS} or more"
    return [
        f"warning: {', '.join(told)}: fewer than {FEWEST_STEPS} steps hardly train anything; "
        f"{remedy}"
    ]


def mostly_padding(run: PhaseRun) -> list[str]:
    """A warning where a batch is too small for its devices, with the size that mends it."""
    for plan in run.plans:
        batches = plan.batches
        # Heads alone are trained on a vector of each text.
        if batches.padding <= MOST_PADDING or not plan.steps or plan.partition.trains_heads_alone:
            continue
        of_texts = run.inputs.training(plan.phase.tasks).texts.tokens.lengths
        asked = run.config.batch_size, batches.devices, run.inputs.bert.hidden_size
        size = mending_batch_size(of_texts, *asked)
        if size is not None:
            return [
                f"warning: {batches.padding:.0%} of what is computed is padding: each of "
                f"{batches.devices} devices has a row as long as the longest text, which its part "
                f"of {run.config.batch_size} texts does not fill: --batch-size {size} mends it, or "
                "fewer devices do"
            ]
    return []


def evened_classes(run: PhaseRun) -> list[str]:
    """A note for each task whose classes weigh unequally, though nothing asks for that."""
    notes = []
    for task, weights in run.plans[0].class_weights:
        names = run.inputs.classes[task]
        rarest, commonest = (names[weights.index(pick(weights))] for pick in (max, min))
        notes.append(
            f"{task}: in training {shown(rarest)} weighs {max(weights):.2f} and {shown(commonest)} "
            f"{min(weights):.2f}, because classes are imbalanced and only heads are trained "
            f"(--class-weights {task}=balanced for a stronger effect, none for no weights)"
        )
    return notes


def without_effect(config: TrainConfig, plans: Sequence[PhasePlan]) -> list[str]:
    """A note for each setting that was given, and that none of the phases has a use for."""
    name = config.name
    reasons = dict.fromkeys(
        untaken(config, [plan.phase for plan in plans]), f"every phase of {name} has its own"
    )
    if not any(plan.phase.trains_factors for plan in plans):
        words = f"{name} trains no low-rank factors: use a scenario such as lora_8"
        reasons = {
            setting: words if setting.startswith("lora_") else why
            for setting, why in reasons.items()
        }
    given = config.drift_limit != TrainConfig.drift_limit
    if given and not any(plan.guarded for plan in plans):
        reasons["drift_limit"] = (
            f"no phase of {name} freezes a head that an earlier one has trained"
        )
    return [
        f"note: --{setting.replace('_', '-')} {_given(config, setting)} is without effect: {why}"
        for setting, why in reasons.items()
    ]


def _given(config: TrainConfig, setting: str) -> str:
    """What a setting was given as."""
    value = getattr(config, setting)
    return " ".join(value) if isinstance(value, tuple) else str(value)


def lengths(config: TrainConfig, plans: Sequence[PhasePlan]) -> list[str]:
    """A note for each phase that has more passes than usual, so as to have enough steps."""
    notes = []
    for number, plan in enumerate(plans, start=1):
        phase, least = plan.phase, plan.phase.min_steps or 0
        if phase.epochs is None:
            # It is as long as its own steps say.
            continue
        if plan.steps > math.ceil(phase.epochs * plan.batches.steps):
            name = f"phase {number} ({phase.scenario}): " if config.recipe else ""
            flag = "--head-min-steps" if plan.partition.trains_heads_alone else "--min-steps"
            notes.append(
                f"note: {name}training for {plan.epochs(plan.steps):.0f} epochs of "
                f"{plan.batches.steps} steps instead of {phase.epochs:.3g} epochs, to make at "
                f"least {least} steps ({flag}); --epochs sets another number"
            )
    return notes
