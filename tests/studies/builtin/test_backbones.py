"""The study of several backbones as a real process: two that are there, one that is not."""

import dataclasses
import json
import os
import sys

import pytest

from mtl_jax.studies.builtin.backbones import Backbones
from mtl_jax.studies.report.backbones_report import (
    answer_text,
    choice,
    document,
    short_names,
    tuning_gains,
)
from mtl_jax.studies.report.render import to_markdown
from tests import forked
from tests.conftest import SMALL, write_checkpoint
from tests.synthetic_study import line


def of(backbone, arm, scores, seconds):
    return [
        {**line(arm, seed, score, seconds), "setting": {"backbone": backbone}}
        for seed, score in enumerate(scores)
    ]


RESULTS = [
    *of("a/small", "backbone_frozen", (0.60, 0.61, 0.62), 5.0),
    *of("a/small", "none_frozen", (0.70, 0.71, 0.72), 20.0),
    *of("large", "backbone_frozen", (0.65, 0.66, 0.67), 50.0),
    *of("large", "none_frozen", (0.705, 0.715, 0.725), 200.0),
]


LAST = ("large", "none_frozen", 2)


def test_the_cheapest_near_the_best_is_recommended():
    names = short_names(["a/small", "large"])
    assert names == {"a/small": "small", "large": "large"}
    text = answer_text(RESULTS, names)
    assert text == (
        "Use small under `none_frozen`: it reaches 0.710 ± 0.025 macro-F1 on the test split "
        "(classifier and sentiment, their mean) for 20 G training FLOPs. On validation nothing "
        "separates it from large under `none_frozen`, and it is the cheapest of these; the "
        "runner-up is large under `none_frozen`, 0.005 above it."
    )
    page = to_markdown(document(RESULTS, [], {}))
    assert page.split("\n\n")[2] == text
    assert "small under `none_frozen` scores 0.710 ± 0.025, 0.005 below the runner-up." in page
    gains = {gain.value: gain.mean for gain in tuning_gains(RESULTS, "test")}
    assert gains == pytest.approx({"a/small": 0.1, "large": 0.055})
    assert short_names(["a/x", "b/x"]) == {"a/x": "a/x", "b/x": "b/x"}


def test_a_backbone_that_was_skipped_is_named_first():
    failure = {"arm": "none_frozen", "seed": 0, "setting": {"backbone": "gone"}, "error": "no hub"}
    text = to_markdown(document(RESULTS, [{**failure, "skipped": True}], {}))
    assert "1 backbone could not be read and is left out: `gone`" in text
    assert text.index("left out") < text.index("Use small")
    assert "`none_frozen` seed 0, backbone gone: no hub" in text
    # The same arm and seed of the first backbone, 0.005 lower for every seed.
    row = next(row for row in text.splitlines() if row.startswith("| large | `none_frozen`"))
    assert row.split(" | ")[5].startswith("+0.005")
    assert "](quality_against_cost.png)" in text


def test_whether_a_larger_one_overfits_more_is_answered():
    def curve(*losses):
        tasks = ("classifier", "sentiment")
        return [{"validation": {task: {"loss": loss} for task in tasks}} for loss in losses]

    losses = {"a/small": (0.9, 0.5, 0.6), "large": (0.9, 0.4, 0.75)}
    measured = [{**r, "curve": curve(*losses[r["setting"]["backbone"]])} for r in RESULTS]
    text = to_markdown(document(measured, [], {}))
    table = text[text.index("overfits more") :].splitlines()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table if "`" in row][:4]
    # Scores on train are 0.05 above those on test.
    constant = ["0.050 ± 0.000", "—"]
    rose = ["0.100 ± 0.000", ""], ["0.350 ± 0.000", "+0.250 [+0.250, +0.250]"]
    assert rows == [
        [name, arm, *own, *constant]
        for name, own in zip(("small", "large"), rose, strict=True)
        for arm in ("`backbone_frozen`", "`none_frozen`")
    ]
    assert "overfits more" not in to_markdown(document(RESULTS, [], {}))


def test_a_backbone_that_could_be_read_only_at_first():
    """Of the larger one's six runs five are done: all are ranked on the seeds of these."""
    cut = [r for r in RESULTS if (r["setting"]["backbone"], r["arm"], r["seed"]) != LAST]
    skip = {"arm": LAST[1], "seed": LAST[2], "setting": {"backbone": LAST[0]}, "error": "no hub"}
    text = to_markdown(document(cut, [{**skip, "skipped": True}], {}))
    assert "left out" not in text
    assert "`large` could not be read for 1 run: what is said of it is from the 5 runs" in text
    assert "with 0.705 against 0.710 of large under `none_frozen`" in text
    assert "They are ranked on seeds 0 and 1, as not all of them have the others." in text


def test_what_trains_nothing_is_not_recommended():
    free = of("large", "all_frozen", (0.9, 0.9, 0.9), 0.0)
    names = short_names(["a/small", "large"])
    advice = choice([*RESULTS, *free], names)
    assert advice is not None
    assert advice.chosen.arm == "a/small none_frozen"
    assert choice(free, names) is None
    frozen_head = of("large", "sentiment_frozen", (0.9, 0.9, 0.9), 1.0)
    advice = choice([*RESULTS, *frozen_head], names)
    assert advice is not None
    assert advice.chosen.arm == "a/small none_frozen"
    assert list(advice.controls) == ["large sentiment_frozen"]


def test_folders_hold_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    study = Backbones(workdir="x", backbones=("mine", "bert-base-uncased", "mine"))
    assert study.backbones == (str(tmp_path / "mine"), "bert-base-uncased")


def test_it_makes_as_many_passes_as_train():
    """Three passes, as other studies make, leave heads on a frozen backbone untrained."""
    run = Backbones(workdir="x").of_a_run()
    assert (run["epochs"], run["min_steps"], run["head_min_steps"]) == (None, None, None)


def test_a_backbone_that_cannot_be_reached_is_counted(small, small_flags, tmp_path):
    deep = dataclasses.replace(SMALL, num_hidden_layers=2)
    names = [
        *(str(small), "somebody/nothing"),
        str(write_checkpoint(tmp_path / "deep", deep, seed=1)),
    ]
    study = tmp_path / "study"

    def call(*backbones):
        return forked.run(
            [
                *(sys.executable, "-m", "experiments.backbones", f"--workdir={study}"),
                *("--backbones", *backbones, "--arms", "backbone_frozen", "none_frozen"),
                *("--seeds", "0", "1", *small_flags[1:]),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        )

    done = call(*names)
    assert done.returncode == 1, done.stderr
    assert "arm 5 failed: backbone 'somebody/nothing' is neither a folder nor" in done.stderr
    results = [json.loads(text) for text in (study / "results.jsonl").read_text().splitlines()]
    assert [(r["setting"]["backbone"], r["seed"], r["arm"]) for r in results] == [
        (name, seed, arm)
        for name in (names[0], names[2])
        for seed in (0, 1)
        for arm in ("backbone_frozen", "none_frozen")
    ]
    # Of each backbone that could be read, which weights it was.
    digests = {r["setting"]["backbone"]: r["weights_sha256"] for r in results}
    assert len(set(digests.values())) == 2
    assert results[-1]["total_parameters"] > results[0]["total_parameters"]
    text = (study / "report.md").read_text()
    assert "left out: `somebody/nothing`" in text
    assert "| `none_frozen` | 6 | 4 | 0 | 2 |" in text
    again = call(names[0], names[2])
    assert again.returncode == 0, again.stderr
    assert "arm 1 of" not in again.stderr

    nothing = call("somebody/nothing")
    assert nothing.returncode == 2
    assert nothing.stderr.splitlines()[-1].startswith("error: no arm of the study in")
