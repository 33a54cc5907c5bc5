"""Whose checkpoints stay while a study is trained, and when it is done."""

import json
from pathlib import Path

from mtl_jax.config.train import TrainConfig
from mtl_jax.studies.best_run import BestModels, best_run, has_model, keep_only_best
from mtl_jax.studies.settings import Arm, arm_folder
from tests.synthetic_study import line, metrics


def made(study, name, seed, setting=None):
    """An arm that has not begun."""
    folder = arm_folder(str(study), name, seed, setting or {})
    return Arm(name, TrainConfig(workdir=folder, seed=seed), setting or {})


def train(arm, score):
    """Leaves what a run does that has ended with a score on validation."""
    folder, name = Path(arm.config.workdir), arm.name
    (folder / "checkpoints").mkdir(parents=True)
    result = {"event": "result", "step": 3, "test": None, "train": {}, "untrained_heads": []}
    if name == "all_frozen":
        result["untrained_heads"] = ["classifier"]
    result["validation"] = metrics(score)
    (folder / "metrics.jsonl").write_text(json.dumps(result) + "\n")


def kept(arms):
    return [f"{arm.name} {arm.config.seed}" for arm in arms if has_model(Path(arm.config.workdir))]


def test_of_each_arm_its_best_run_and_in_the_end_that_of_the_recommended(tmp_path):
    runs = [("all_frozen", 0, 0.9), ("top_1", 0, 0.6), ("none_frozen", 0, 0.8), ("top_1", 1, 0.7)]
    arms = [made(tmp_path, name, seed) for name, seed, _ in runs]
    models, after = BestModels(arms), []
    for arm, (_, _, score) in zip(arms, runs, strict=True):
        train(arm, score)
        models.keep_better(arm)
        after.append(kept(arms))
    # What trains nothing is no model. The second seed is the better one.
    assert after[1:3] == [["top_1 0"], ["top_1 0", "none_frozen 0"]]
    assert kept(arms) == ["none_frozen 0", "top_1 1"]
    # Another process finds what this one has left.
    worse = made(tmp_path, "none_frozen", 1)
    train(worse, 0.75)
    BestModels([*arms, worse]).keep_better(worse)
    assert kept([*arms, worse]) == ["none_frozen 0", "top_1 1"]

    results = [line(name, seed, score, 10) for name, seed, score in runs]
    best = best_run(results)
    assert best is not None
    assert (best["arm"], best["seed"]) == ("none_frozen", 0)
    keep_only_best(arms, results, tmp_path)
    assert kept(arms) == ["none_frozen 0"]


def test_who_is_outdone_need_not_save(tmp_path):
    runs = [("top_1", 0, 0.6), ("top_1", 1, 0.5), ("none_frozen", 0, 0.4), ("top_1", 2, 0.6)]
    arms = [made(tmp_path, name, seed) for name, seed, _ in runs]
    models, said = BestModels(arms), []
    for arm, (_, _, score) in zip(arms, runs, strict=True):
        said.append(models.outdone(arm.config.workdir, score))
        train(arm, score)
        models.keep_better(arm)
    # By a better one of the same arm that has its checkpoints; an equal one saves its own.
    assert said == [False, True, False, False]
    assert kept(arms) == ["top_1 0", "none_frozen 0"]
    # Whatever it says of itself afterwards, it has no model.
    last = made(tmp_path, "none_frozen", 1)
    models = BestModels([*arms, last])
    assert models.outdone(last.config.workdir, 0.3)
    train(last, 0.9)
    models.keep_better(last)
    assert kept([*arms, last]) == ["top_1 0", "none_frozen 0"]


def test_of_a_study_with_settings_one_run_of_all(tmp_path):
    runs = [("top_1", 64, 0.6), ("none_frozen", 64, 0.5), ("top_1", 256, 0.7)]
    arms = [made(tmp_path, name, 0, {"size": size}) for name, size, _ in runs]
    models = BestModels(arms)
    for arm, (_, _, score) in zip(arms, runs, strict=True):
        train(arm, score)
        models.keep_better(arm)
    assert [str(arm) for arm in arms if has_model(Path(arm.config.workdir))] == [
        "top_1, seed 0, size 256"
    ]
