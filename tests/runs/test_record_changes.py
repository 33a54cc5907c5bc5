"""Of two records what differs is told, each value as it was and as it is, and nothing else."""

import json

from mtl_jax.runs.record_changes import changes, lasting


def record(seed=0, phases=None, **others):
    settings = {"seed": seed, "epochs": None, "data": {"max_length": 128}, "cache_size": 4}
    return {"settings": settings, "phases": phases or [phase()], **others}


def phase(**own):
    usual = {
        "scenario": "top_1",
        "learning_rates": [["head", 0.001], ["backbone", 2e-5]],
        "rules": [["backbone/*", "frozen"], ["*", "head"]],
        "warmup_fraction": 0.1,
    }
    return usual | own


def test_settings_are_told_by_their_flags_and_nothing_that_follows_from_them():
    new = record(seed=1, phases=[phase(scenario="top_2")], pooling="cls")
    new["settings"]["data"] = {"max_length": 64}
    new["settings"]["cache_size"] = 8
    assert changes(lasting(record()), lasting(new)) == [
        "seed was 0, now 1",
        "max_length was 128, now 64",
    ]
    new = record(phases=[phase(scenario="top_2")], pooling="cls")
    assert changes(record(pooling="mean"), new) == ["pooling was 'mean', now 'cls'"]


def test_of_phases_only_what_differs_is_told():
    now = phase(learning_rates=[["head", 0.01], ["backbone", 2e-5]], warmup_fraction=0.2)
    assert changes(record(), record(phases=[now])) == [
        "phases[0].learning_rates.head was 0.001, now 0.01",
        "phases[0].warmup_fraction was 0.1, now 0.2",
    ]
    two = [phase(), phase(scenario="none_frozen")]
    assert changes(record(phases=two), record(phases=two[1:])) == [
        "phases had 2 entries, now 1",
        "phases[0].scenario was 'top_1', now 'none_frozen'",
    ]
    # The first rule that matches counts: another order is another scenario.
    turned = phase(rules=phase()["rules"][::-1])
    assert changes(record(), record(phases=[turned])) == [
        "phases[0].rules was [['backbone/*', 'frozen'], ['*', 'head']], "
        "now [['*', 'head'], ['backbone/*', 'frozen']]"
    ]


def test_a_later_setting_at_its_default_is_no_change_and_long_values_are_cut():
    later = record(phases=[phase(hold_frozen_heads=None)], kinds={})
    later["settings"]["r_drop"] = None
    assert changes(record(), later) == []
    classes = {"topic": [f"class {i}" for i in range(50)]}
    other = {"topic": [*classes["topic"][:-1], "another"]}
    assert changes(record(classes=classes), record(classes=other)) == [
        "classes.topic[49] was 'class 49', now 'another'"
    ]
    (words,) = changes(record(), record(bert={"name": "x" * 1000}))
    assert words.startswith("bert was None, now {'name': 'xxx")
    assert len(words) < 150


def test_records_are_compared_as_they_are_written():
    assert changes(record(), json.loads(json.dumps(record()))) == []
