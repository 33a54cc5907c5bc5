"""The study of what raises quality: its arms as data, and a small one on the default corpus."""

import dataclasses
import json

import numpy as np
import pytest

from mtl_jax.config.data import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.studies import ensemble, recompute
from mtl_jax.studies.builtin.quality import ARMS, Quality, run
from mtl_jax.studies.judge import judge, keep
from mtl_jax.studies.report import quality_report
from mtl_jax.studies.report.document import Code
from tests.synthetic_study import line

SENTENCES = DataConfig(
    max_train_examples=48,
    # One draw for all seeds, and so one set of baselines.
    train_subset=0,
    max_validation_examples=40,
    max_test_examples=60,
    max_length=24,
)


def test_each_arm_changes_one_thing():
    study = Quality(workdir="w")
    assert study.named_arms == tuple(ARMS)
    base = study.config("none_frozen", 0)
    assert (base.scenario, base.epochs, base.ema, base.r_drop) == ("none_frozen", 3, None, None)
    changed = {}
    for arm in study.named_arms[1:]:
        config = study.config(arm, 0)
        fields = [f.name for f in dataclasses.fields(config) if f.name != "workdir"]
        changed[arm] = {
            name: getattr(config, name)
            for name in fields
            if getattr(config, name) != getattr(base, name)
        }
    data = {arm: own.pop("data") for arm, own in changed.items() if "data" in own}
    assert changed == {
        "soft_labels": {},
        "soft_labels_of_mean": {},
        "mean_rating": {"task_weights": ("rating=0.5",)},
        "layer_decay_ema": {"layer_decay": 0.8, "ema": 0.999},
        "r_drop": {"r_drop": 1.0},
        "longer": {"epochs": 6},
    }
    assert data["soft_labels"].soft_labels == ("sentiment=sentiment_raters",)
    assert data["soft_labels_of_mean"].soft_labels == ("sentiment=sentiment_other_raters",)
    assert data["mean_rating"].tasks == ("classifier", "sentiment", "rating")


def test_arms_are_joined_and_what_can_not_be_is_refused():
    study = Quality(workdir="w", arms=("longer+r_drop+soft_labels",))
    assert study.named_arms == ("none_frozen", "longer+r_drop+soft_labels")
    config = study.config(study.named_arms[1], 3)
    assert (config.epochs, config.r_drop, config.seed) == (6, 1.0, 3)
    assert config.data.soft_labels == ("sentiment=sentiment_raters",)
    with pytest.raises(
        UserError, match=r"soft_labels and soft_labels_of_mean both set soft_labels"
    ):
        Quality(workdir="w", arms=("soft_labels+soft_labels_of_mean",))
    with pytest.raises(UserError, match=r"unknown arm 'ema': use none_frozen, soft_labels"):
        Quality(workdir="w", arms=("ema",))
    own = DataConfig(train_file="a.csv", label_columns=("topic=topic",))
    assert Quality(workdir="w", data=own).named_arms == (
        *("none_frozen", "layer_decay_ema", "r_drop", "longer"),
    )
    with pytest.raises(UserError, match=r"'mean_rating' needs what the raters of the default"):
        Quality(workdir="w", data=own, arms=("mean_rating",))


def test_two_arms_and_their_ensembles(small, tmp_path, capsys):
    folder, arm = tmp_path / "study", "soft_labels+mean_rating+layer_decay_ema"
    study = Quality(
        workdir=str(folder),
        arms=(arm,),
        seeds=(0, 1, 2),
        backbone=str(small),
        data=SENTENCES,
        epochs=1,
        parallel="jit",
        cache_folder=str(tmp_path / "cache"),
    )
    assert run(study, "the command") == 0
    said = capsys.readouterr()
    assert "ensemble of its 3 seeds reaches" in " ".join(said.out.split())
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [(line["arm"], line["seed"]) for line in lines] == [
        (name, seed) for seed in (0, 1, 2) for name in ("none_frozen", arm)
    ]
    assert lines[1]["test"].keys() == {"classifier", "sentiment", "rating"}
    # Another task moves no head's start, order or dropout, but training changes what is learned.
    assert lines[0]["test"]["sentiment"] != lines[1]["test"]["sentiment"]

    report = (folder / "report.md").read_text()
    for words in (
        f"`{arm}`, ensemble of 3 seeds",
        "What each change brings on the validation split, minus none_frozen",
        "sentiment weighted F1, tweet",
        "classifier accuracy",
        "Intervals cover other seeds",
        "and other test texts together",
    ):
        assert words in report, words
    assert "rating R2" not in report

    # From the predictions alone, elsewhere.
    def probabilities(arm, *seeds):
        found = ensemble(folder, arm, seeds=seeds or None).tasks["sentiment"]
        assert found.probabilities is not None
        return found.probabilities, found.predicted

    mean = np.mean([probabilities(arm, seed)[0] for seed in range(3)], axis=0)
    shares, predicted = probabilities(arm)
    np.testing.assert_allclose(shares, mean, rtol=1e-6)
    np.testing.assert_array_equal(predicted, mean.argmax(-1))
    together = ensemble(folder, "none_frozen")
    kept = tmp_path / "kept"
    keep(folder, kept)
    assert recompute(kept) == lines
    assert ensemble(kept, "none_frozen").metrics() == together.metrics()
    judged = judge(kept, tmp_path / "judged").with_suffix(".md").read_text()
    assert (
        judged.partition("## Results")[2].partition("## Scores by class")[0]
        == (report.partition("## Results")[2].partition("## Scores by class")[0])
    )
    # With few digits too: the ensembles are kept beside the runs, whose shares are rounded.
    few = tmp_path / "few"
    keep(folder, few, digits=2)
    again = judge(few, tmp_path / "again").with_suffix(".md").read_text()
    assert (
        again.partition("## Results")[2].partition("## Scores by class")[0]
        == (judged.partition("## Results")[2].partition("## Scores by class")[0])
    )
    with pytest.raises(UserError, match="rounded probabilities can't be averaged"):
        ensemble(few, "none_frozen", seeds=[0, 1])
    with pytest.raises(UserError, match="has no result of r_drop with these seeds"):
        ensemble(folder, "r_drop")


def test_the_arm_that_the_report_proposes_is_one_that_there_can_be():
    """Of two changes that exclude each other it has the better one, and none that did harm."""
    arms = {
        "none_frozen": 0.70,
        "soft_labels": 0.75,
        "soft_labels_of_mean": 0.76,
        "r_drop": 0.72,
        "longer": 0.69,
    }
    results = [
        line(arm, seed, score + 0.001 * seed, 10)
        for arm, score in arms.items()
        for seed in range(3)
    ]
    (flag,) = (
        block.text
        for block in quality_report.document(results, [], {}).blocks
        if isinstance(block, Code) and block.text.startswith("--arms")
    )
    assert flag.split() == ["--arms", *arms, "soft_labels_of_mean+r_drop"]
    assert Quality(workdir="w", arms=tuple(flag.split()[1:])).named_arms[-1] == flag.split()[-1]
