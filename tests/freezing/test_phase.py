"""Phases as data: what is refused, how settings fill them, how epochs become steps."""

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest

from mtl_jax.config.train import DataConfig, TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.phase import Phase, boundaries, phases_from

CONFIG = TrainConfig(
    workdir="",
    epochs=4,
    head_learning_rate=0.1,
    backbone_learning_rate=0.01,
    task_weights=("sentiment=0.5",),
    layer_decay=0.5,
)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epochs": 1, "steps": 5}, "epochs and steps are both given"),
        ({"epochs": 0}, "epochs 0 must be above 0"),
        ({"min_steps": 1, "steps": 5}, "min_steps and steps are both given"),
        ({"min_steps": -1}, "min_steps -1 must be at least 0"),
        ({"steps": 0}, "steps 0 must be at least 1"),
        ({"steps": 2**31}, "steps 2147483648 must be at most 2147483647"),
        ({"epochs": 1e300}, r"epochs 1e\+300 must be at most 2147483647"),
        ({"patience": 0}, "patience 0 must be at least 1"),
        ({"min_gain": -1}, "min_gain -1 must be at least 0"),
        ({"layer_decay": 0}, "layer_decay 0 must be above 0"),
        ({"drift_limit": 0}, "drift_limit 0 must be above 0"),
        ({"hold_frozen_heads": -1}, "hold_frozen_heads -1 must be at least 0"),
        (
            {"warmup_fraction": 1.5},
            "warmup_fraction 1.5 must be .* end before its rates have risen",
        ),
        (
            {"learning_rates": (("head", -1),)},
            "{'head': -1} must be finite and not negative",
        ),
        ({"epochs": float("inf")}, "epochs inf must be finite"),
        ({"epochs": float("nan")}, "epochs nan must be above 0"),
        ({"requires_gain": float("nan")}, "requires_gain nan must be finite"),
        ({"learning_rates": (("head", 1e-3), ("head", 0.1))}, "learning_rates names 'head' twice"),
        (
            {"task_weights": {"a": 1, "b": -1}},
            "task_weights {'a': 1, 'b': -1} must be finite and not negative",
        ),
        *(
            ({name: value}, re.escape(f"{name} is {value!r}: give "))
            for name, value in (
                ("epochs", "one"),
                ("epochs", True),
                ("steps", 2.5),
                ("patience", 1.0),
                ("min_gain", None),
                ("requires_gain", "a"),
                ("keep_best", "no"),
                ("restart", None),
                ("task_weights", (1, 1)),
                ("scenario", 1),
            )
        ),
    ],
)
def test_a_phase_that_can_not_be_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        Phase(**{"scenario": "top_1", **fields})


def test_rates_are_kept_as_pairs_of_plain_numbers():
    rates: Any = [["head", np.float32(0.5)], ("backbone", 1)]
    assert Phase(scenario="top_1", learning_rates=rates) == Phase(
        scenario="top_1", learning_rates={"head": 0.5, "backbone": 1}
    )
    assert json.dumps(Phase(scenario="top_1", learning_rates=rates).learning_rates)


def test_settings_fill_what_a_phase_leaves_open():
    phase = Phase(scenario="top_1").completed(CONFIG)
    phase = phase.settled(CONFIG, heads_alone=False, stated=False)
    assert phase == Phase(
        scenario="top_1",
        epochs=4.0,
        min_steps=0,
        learning_rates=(("head", 0.1), ("backbone", 0.01)),
        layer_decay=0.5,
        schedule="linear",
        warmup_fraction=0.1,
        task_weights=(("classifier", 1.0), ("sentiment", 0.5)),
        drift_limit=0.1,
        hold_frozen_heads=0.0,
    )
    assert phase.weights == {"classifier": 1.0, "sentiment": 0.5}
    assert phase.tasks == ("classifier", "sentiment")


def test_what_a_phase_says_itself_stays():
    own = Phase(
        scenario="top_2",
        steps=7,
        learning_rates=(("backbone/layer_1", 0.3), ("head", 0.2)),
        layer_decay=1.0,
        schedule="constant",
        warmup_fraction=0.0,
        task_weights=(("classifier", 0.0), ("sentiment", 2.0)),
        drift_limit=1.0,
        hold_frozen_heads=0.5,
    )
    phase = own.completed(CONFIG)
    assert dict(phase.learning_rates) == {"head": 0.2, "backbone": 0.01, "backbone/layer_1": 0.3}
    assert dataclasses.replace(phase, learning_rates=own.learning_rates) == own
    assert phase.tasks == ("sentiment",)
    assert dataclasses.replace(
        phase, task_weights=(("classifier", 0.0), ("sentiment", 0.0))
    ).tasks == ("classifier", "sentiment")


@pytest.mark.parametrize(
    ("lengths", "per_epoch", "steps"),
    [
        ([{"epochs": 1 / 3}] * 3, [10] * 3, [3, 4, 3]),
        ([{"epochs": 3 / 8}] * 8, [12] * 8, [4, 5, 5, 4, 4, 5, 5, 4]),
        ([{"epochs": 0.001}] * 2, [10] * 2, [1, 1]),
        ([{"epochs": 2.0}, {"steps": 5}, {"epochs": 0.5}], [10] * 3, [20, 5, 5]),
        # Few texts have whole passes more until there are enough steps; what follows is as it was.
        ([{"epochs": 2.0, "min_steps": 25}, {"epochs": 0.5}], [10] * 2, [30, 5]),
        ([{"epochs": 0.5, "min_steps": 10}, {"epochs": 0.5, "min_steps": 5}], [10] * 2, [10, 5]),
        ([{"epochs": 2.0, "min_steps": 20}], [10], [20]),
        # Where fewer texts have a label, an epoch is shorter.
        ([{"epochs": 1.0}, {"epochs": 1.0}], [10, 3], [10, 3]),
    ],
)
def test_epochs_become_steps_that_add_up(lengths, per_epoch, steps):
    phases = [Phase(scenario="top_1", **length) for length in lengths]
    assert boundaries(phases, per_epoch) == steps


@pytest.mark.parametrize(
    ("own", "settings", "heads_alone", "stated", "epochs", "min_steps"),
    [
        ({}, {}, False, False, 3.0, 150),
        ({}, {}, True, False, 15.0, 5000),
        # What is said of the length is meant.
        ({}, {"epochs": 1}, False, False, 1.0, 0),
        ({}, {"epochs": 1}, True, False, 1.0, 0),
        ({"epochs": 2.0}, {}, False, True, 2.0, 0),
        ({"epochs": 2.0, "min_steps": 7}, {}, True, True, 2.0, 7),
        ({"min_steps": 7}, {"min_steps": 9}, False, False, 3.0, 7),
        # A floor that is asked for holds beside --epochs, too.
        ({}, {"epochs": 1, "min_steps": 80}, False, False, 1.0, 80),
        ({}, {"epochs": 1, "min_steps": 80}, True, False, 1.0, 0),
        ({}, {"epochs": 1, "head_min_steps": 90}, True, False, 1.0, 90),
        ({"epochs": 2.0}, {"head_min_steps": 90}, True, True, 2.0, 90),
        # Of a built-in recipe each phase has enough steps.
        ({"epochs": 0.5}, {}, False, False, 0.5, 150),
        ({"steps": 5}, {"min_steps": 80}, False, True, None, None),
    ],
)
def test_a_phase_has_enough_steps_unless_its_length_is_stated(
    own, settings, heads_alone, stated, epochs, min_steps
):
    config = TrainConfig(workdir="", **settings)
    phase = Phase(scenario="top_1", **own).completed(config)
    settled = phase.settled(config, heads_alone=heads_alone, stated=stated)
    assert (settled.epochs, settled.min_steps, settled.steps) == (epochs, min_steps, phase.steps)


def test_the_rate_of_heads_is_stated_or_open():
    open_rate = TrainConfig(workdir="")
    phase = Phase(scenario="top_1").completed(open_rate)
    assert dict(phase.learning_rates) == {"backbone": 1e-4}
    length = {"heads_alone": True, "stated": False}
    assert dict(phase.settled(open_rate, **length).learning_rates)["head"] == 3e-3
    swept = phase.settled(open_rate, **length, head_learning_rate=0.03)
    assert swept.learning_rates == (("head", 0.03), ("backbone", 1e-4))
    stated = TrainConfig(workdir="", head_learning_rate=0.5)
    phase = Phase(scenario="top_1").completed(stated)
    swept = phase.settled(stated, **length, head_learning_rate=0.03)
    assert swept.learning_rates == (("head", 0.5), ("backbone", 1e-4))


def test_phases_from_json():
    text = json.dumps(
        [
            {"scenario": "backbone_frozen", "epochs": 1, "learning_rates": {"head": 0.5}},
            {
                "scenario": "top_1",
                "task_weights": {"sentiment": 2, "classifier": 0},
                "restart": False,
            },
            {
                "scenario": "none_frozen",
                "task_weights": {"classifier": 1, "sentiment": 0.5},
                "patience": 2,
                "keep_best": True,
            },
        ]
    )
    assert phases_from(json.loads(text), "recipe.json") == (
        Phase(scenario="backbone_frozen", epochs=1, learning_rates=(("head", 0.5),)),
        Phase(scenario="top_1", task_weights=(("sentiment", 2), ("classifier", 0)), restart=False),
        Phase(
            scenario="none_frozen",
            task_weights=(("classifier", 1), ("sentiment", 0.5)),
            patience=2,
            keep_best=True,
        ),
    )


def test_a_phase_may_weigh_some_tasks_only():
    phase = Phase(scenario="top_1", task_weights={"classifier": 0}).completed(CONFIG)
    assert phase.weights == {"classifier": 0, "sentiment": 0.5}
    assert phase.tasks == ("sentiment",)


@pytest.mark.parametrize("field", [{"task_weights": {"topic": 1}}, {"task_metric": "topic"}])
def test_a_phase_that_names_another_task_is_refused(field):
    with pytest.raises(UserError, match="there is no task 'topic': use classifier or sentiment"):
        Phase(scenario="top_1", **field).completed(CONFIG)


def test_a_list_of_rules_is_a_scenario_of_a_phase():
    (phase,) = phases_from([{"scenario": [["backbone/*", "frozen"], ["*", "head"]]}], "r.json")
    assert phase.scenario == '[["backbone/*", "frozen"], ["*", "head"]]'


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ({}, "r.json is not a list of phases"),
        ([], "r.json is not a list of phases"),
        ([1], "r.json: phase 1 is not an object with a scenario"),
        ([{"epochs": 1}], "r.json: phase 1 is not an object with a scenario"),
        ([{"scenario": "top_1", "epoch": 1}], "r.json: phase 1 has no field 'epoch': use scenario"),
        ([{"scenario": "a", "epochs": 1}, {"scenario": "b", "steps": -1}], "phase 2: steps -1 mus"),
        (
            [{"scenario": "a", "task_weights": [1, 1]}],
            "1: task_weights is not an object: .* by task",
        ),
        (
            [{"scenario": "a", "learning_rates": [1]}],
            "1: learning_rates is not an object: .* by label",
        ),
        ([{"scenario": "a", "schedule": "m:f"}], "phase 1: schedule 'm:f' names code"),
        (
            [{"scenario": "a", "learning_rates": {"head": "x"}}],
            "phase 1: learning_rates is .* give a mapping or a list",
        ),
        ([{"scenario": "a", "schedule": "cosine"}], "phase 1: schedule 'cosine': use linear, "),
        ([{"scenario": "a", "metric": "bleu"}], "phase 1: metric is 'bleu': give 'mean_"),
        ([{"scenario": "a", "metric": None}], "phase 1: metric is None: give 'mean_macro"),
    ],
)
def test_other_json_is_refused(objects, words):
    with pytest.raises(UserError, match=words):
        phases_from(objects, "r.json")


def test_a_phase_weighs_some_tasks_and_the_settings_the_others():
    data = DataConfig(label_columns=("topic=a", "mood=b", "queue=c"))
    config = TrainConfig(workdir="", data=data, task_weights=("mood=3",))
    (phase,) = phases_from([{"scenario": "top_1", "task_weights": {"queue": 0.5}}], "r.json")
    assert phase.completed(config).weights == {"topic": 1.0, "mood": 3.0, "queue": 0.5}
    for field in ({"task_weights": {"tone": 1}}, {"task_metric": "tone"}):
        (phase,) = phases_from([{"scenario": "top_1", **field}], "r.json")
        with pytest.raises(UserError, match="no task 'tone': use topic or mood or queue"):
            phase.completed(config)
