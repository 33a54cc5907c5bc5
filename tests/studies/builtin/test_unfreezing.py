"""The unfreezing study: its arms and findings by hand, and as a real process that is killed."""

import dataclasses
import json
import math
import signal
import subprocess
import sys

import pytest

from mtl_jax.config.train import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.recipes import RecipeContext, phases_of
from mtl_jax.studies.builtin.unfreezing import Unfreezing, only_layer_rules, run
from mtl_jax.studies.report.document import Table
from mtl_jax.studies.report.phase_counts import best_phases
from mtl_jax.studies.report.render import to_markdown
from mtl_jax.studies.report.unfreezing_findings import (
    COST,
    chosen_depths,
    depth_gains,
    gradual_text,
    on,
    pays_from,
    pays_text,
)
from mtl_jax.studies.report.unfreezing_report import document
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.claims import judge_claims
from mtl_jax.studies.stats.comparisons import questions
from tests import forked
from tests.faults.runs import without_times
from tests.synthetic_study import line, metrics

ARMS = ("backbone_frozen", "only_layer_0")


def of(size, arm, score, validation=None, seconds=10.0):
    """Six seeds, whose scores lie 0.001 apart, in an order that depends on the arm."""
    wobble = 2 * ((0.0, 0.001, 0.002) if arm == "backbone_frozen" else (0.001, 0.0, 0.002))
    return [
        {
            **line(arm, seed, (validation or score) + more, seconds, test=score + more),
            "setting": {"max_train_examples": size},
        }
        for seed, more in enumerate(wobble)
    ]


RESULTS = [
    *of(1024, "backbone_frozen", 0.62),
    *of(1024, "top_1", 0.70, validation=0.71),
    *of(1024, "none_frozen", 0.72, validation=0.70),
    *of(1024, "gradual_unfreezing", 0.75, seconds=20.0),
    *of(64, "backbone_frozen", 0.50),
    *of(64, "top_1", 0.50),
    *of(64, "none_frozen", 0.40),
    *of(64, "gradual_unfreezing", 0.45),
    *of(256, "backbone_frozen", 0.60),
    *of(256, "top_1", 0.64),
    *of(256, "none_frozen", 0.60),
    *of(256, "gradual_unfreezing", 0.60),
]


def test_from_how_many_sentences_it_pays():
    gains = {gain.value: gain for gain in depth_gains(RESULTS, "test")}
    # Validation chooses the depth, and the test split has the last word on it.
    assert {size: gain.arm for size, gain in gains.items()} == dict.fromkeys(
        (64, 256, 1024), "top_1"
    )
    assert gains[1024].mean == pytest.approx(0.08)
    verdicts = {size: gain.verdict for size, gain in gains.items()}
    assert verdicts == {64: "alike within 0.01", 256: "better", 1024: "better"}
    assert pays_from(list(gains.values())) == 256
    assert pays_text(RESULTS, "test") == (
        "On this data, at equal updates, unfreezing pays from 256 training sentences on: there the "
        "depth that is chosen for each seed on the validation scores of the others, `top_1`, has "
        "+0.040 of test macro-F1 over `backbone_frozen`; with 64 it is not shown to."
    )
    larger = [result for result in RESULTS if result["setting"]["max_train_examples"] > 64]
    assert "already with 256 training sentences, the fewest that were tried" in pays_text(
        larger, "test"
    )
    fewest = [result for result in RESULTS if result["setting"]["max_train_examples"] == 64]
    assert "not shown to pay up to 64 training sentences" in pays_text(fewest, "test")
    frozen = [result for result in RESULTS if result["arm"] == "backbone_frozen"]
    assert pays_text(frozen, "test").startswith("Nothing can be said")


def depth(arm, validation, test=0.5):
    return [
        {**line(arm, seed, score, 10.0, test=test), "setting": {"max_train_examples": 64}}
        for seed, score in enumerate(validation)
    ]


def test_a_seed_does_not_choose_its_own_depth():
    # Of seeds 1 and 2 top_1 has the mean 0.5, of 0 and 2, as of 0 and 1, 0.7; none_frozen has
    # 0.6. With its own score, seed 0 would have chosen top_1 too: 0.633 is the mean of all.
    scores = [*depth("top_1", (0.9, 0.5, 0.5), 0.7), *depth("none_frozen", (0.6,) * 3, 0.8)]
    assert chosen_depths(scores, []) == {0: "none_frozen", 1: "top_1", 2: "top_1"}
    (gain,) = depth_gains([*scores, *depth("backbone_frozen", (0.5,) * 3)], "test")
    assert gain.difference.by_seed == pytest.approx({0: 0.3, 1: 0.2, 2: 0.2})
    assert gain.arm == "top_1 / none_frozen"
    assert chosen_depths(scores[:1], []) == {}


def test_depths_that_lack_a_seed_are_not_ranked():
    # Of what is left top_1 is the best, as the seed that all do badly with has failed there.
    scores = [
        *depth("none_frozen", (0.7, 0.7, 0.1)),
        *depth("top_2", (0.6, 0.6, 0.1)),
        *depth("top_1", (0.65, 0.65)),
    ]
    assert set(chosen_depths(scores, []).values()) == {"none_frozen"}
    # Where all lack one, all are ranked.
    two = [result for result in scores if result["seed"] < 2]
    failures = [{"arm": "top_1", "seed": 2, "setting": {"max_train_examples": 64}}]
    assert chosen_depths(two, failures) == {0: "none_frozen", 1: "none_frozen"}


def test_a_size_without_a_comparison_ends_the_sequence():
    without = [
        result
        for result in RESULTS
        if (result["arm"], result["setting"]["max_train_examples"]) != ("backbone_frozen", 256)
    ]
    gains = depth_gains(without, "test")
    assert [(gain.value, gain.p_value) for gain in gains] == [(1024, 2 / 64), (64, None)]
    assert "with 256 it is not shown to." in pays_text(without, "test")
    text = to_markdown(document(without, [], {}))
    assert "(not tested, as one before it was not made)" in text


def test_the_most_that_were_tried_may_have_failed():
    failures = [
        {"arm": arm, "seed": 0, "setting": {"max_train_examples": 4096}, "error": "out of memory"}
        for arm in ("backbone_frozen", "top_1")
    ]
    assert pays_text(RESULTS, "test", failures) == (
        "On this data, at equal updates, unfreezing is not shown to pay up to 4,096 training "
        "sentences, the most that were tried: no runs can be compared there."
    )
    text = to_markdown(document(RESULTS, failures, {}))
    assert "| arm | 64 | 256 | 1,024 | 4,096 |" in text
    assert "the mean over 64, 256 and 1,024 sentences" in text


def test_a_gain_that_a_larger_size_does_not_bear_out_is_none():
    gains = depth_gains(RESULTS, "test")
    broken = [
        dataclasses.replace(gain, p_value=1.0) if gain.value == 1024 else gain for gain in gains
    ]
    assert pays_from(broken) is None


def test_gradual_against_at_once():
    overall, within = questions(
        RESULTS, "max_train_examples", "gradual_unfreezing", "none_frozen", on("test")
    )
    text = gradual_text(RESULTS, overall, within, "test")
    # 0.05, 0 and 0.03 in the three sizes, the same for every seed.
    assert "+0.027" in text
    assert "the mean over 64, 256 and 1,024 sentences (corrected p = 0.031)" in text
    assert "On the most sentences it takes 2.0× more training FLOPs." in text
    assert gradual_text(RESULTS, [], [], "test").startswith("Gradual unfreezing is not compared")


@pytest.mark.parametrize("sizes", [(64,), (64, 256), (64, 256, 1024)])
def test_what_is_compared_at_one_size_has_one_p_value_wherever_it_stands(sizes):
    # The smaller half of one, two or three sizes is one size.
    results = [
        {**result, "test": {**result["test"], "sentiment": {**result["test"]["sentiment"]}}}
        for result in RESULTS
        if result["setting"]["max_train_examples"] in sizes
    ]
    for result in results:
        result["test"]["sentiment"]["macro_f1"] += 0.02 * result["seed"] * len(result["arm"]) % 0.1
    asked = questions(
        results, "max_train_examples", "gradual_unfreezing", "none_frozen", on("test")
    )
    judgement = judge_claims(results, (), *asked)
    (claim,) = [each for each in judgement.claims if "needs less data" in each.sentence]
    at_64 = judgement.within[0]
    assert at_64.value == 64
    assert at_64.p_value is not None
    p_text = f"corrected p {formatting.p_text(at_64.p_value)},"
    if len(sizes) > 1:
        assert p_text in claim.finding.number
        assert p_text in claim.details[0].number
    else:
        assert judgement.overall[0].p_value == at_64.p_value


def test_the_report_holds_every_arm_at_every_size():
    linear = [
        {"baseline": "tf_idf", "setting": {"max_train_examples": 64}, "test": metrics(score)}
        for score in (0.4, 0.42)
    ]
    text = to_markdown(document(RESULTS, [], {"command": "the command", "baselines": linear}))
    # s = 0.01414, and t with 1 degree of freedom 12.7.
    row = "| *max_train_examples 64* | *TF-IDF, linear model* | *2* | *0.410 ± 0.127* |"
    assert row in text.partition("## Scores by source")[0]
    assert "| arm | 64 | 256 | 1,024 |" in text
    # Their standard deviation is 0.00089, its error 0.00037, and t with 5 degrees of freedom 2.57.
    assert "| `top_1` | 0.501 ± 0.001 | 0.641 ± 0.001 | 0.701 ± 0.001 |" in text
    assert "| `gradual_unfreezing` | 10 G (1.00×) | 10 G (1.00×) | 20 G (2.00×) |" in text
    assert "| `none_frozen` | 10.0 [10.0, 10.0] | 10.0 [10.0, 10.0] | 10.0 [10.0, 10.0] |" in text
    assert "](heat_map.png)" in text
    assert "](curves.png)" in text
    assert text.index("unfreezing pays from 256") < text.index("## Results")
    # Size by size, the findings and the claim say the same.
    claims = [row for row in text.splitlines() if row.startswith("| *at max_train_examples 64* |")]
    number = "| *+0.050 [+0.050, +0.050], corrected p 0.031, 6 seeds* |"
    assert sum(number in claim for claim in claims) == 1
    (found,) = [row for row in text.splitlines() if row.startswith("- 64 sentences: `gradual")]
    assert found.endswith("against `none_frozen`, better (corrected p = 0.031).")


def test_sizes_and_passes(tmp_path):
    study = Unfreezing(
        workdir=str(tmp_path), sizes=(None, 500, 64, 100), epochs=3, min_steps=12, batch_size=16
    )
    # What exceeds the texts there are is all of them, once.
    assert study.limits(500) == {64: 64, 100: 100, 500: None}
    assert study.limits(450) == {64: 64, 100: 100, 450: None}
    limited = dataclasses.replace(study, data=DataConfig(max_train_examples=450))
    assert limited.limits(450)[450] == 450
    # Steps of a pass: 1, 4, 7, 32.
    assert [study.epochs_of(count) for count in (16, 64, 100, 500)] == [12, 3, 3, 3]
    assert dataclasses.replace(study, min_steps=13).epochs_of(64) == 4
    for sizes, words in (((0,), "--sizes 0 must be at least 1"), ((), "--sizes is empty")):
        with pytest.raises(UserError, match=words):
            Unfreezing(workdir=str(tmp_path), sizes=sizes)
    with pytest.raises(UserError, match="--min-steps -1 must be a number of 0 or more"):
        Unfreezing(workdir=str(tmp_path), min_steps=-1)


def test_the_arms_of_a_backbone(tmp_path):
    study = Unfreezing(workdir=str(tmp_path))
    assert study.named_arms(2) == (
        *("backbone_frozen", "top_1", "top_2", "none_frozen", "at_once"),
        *("gradual_unfreezing", "top_down_2", "lp_ft", "auto"),
        *("only_layer_0", "only_layer_1"),
        *("backbone_frozen_equal_cost", "top_1_equal_cost"),
    )
    assert study.named_arms(1) == (
        *("backbone_frozen", "top_1", "none_frozen", "at_once"),
        *("gradual_unfreezing", "lp_ft", "auto", "only_layer_0"),
        "backbone_frozen_equal_cost",
    )
    for wrong, words in (
        ("only_layer_2", "does not fit the backbone's 2 layers"),
        ("top_3", "does not fit"),
        ("top_3_equal_cost", "does not fit"),
        ("none_frozen_equal_cost", "unknown arm 'none_frozen_equal_cost': did you mean"),
        ("top_down_9", "recipe top_down_9: phase 2: scenario 'top_9' does not fit"),
        ("at_onec", "did you mean at_once.*only_layer_i, .*layer_decay, at_once, .*a recipe "),
    ):
        with pytest.raises(UserError, match=words):
            dataclasses.replace(study, arms=(wrong,)).named_arms(2)
    assert only_layer_rules("only_layer_4")[0] == ["backbone/layer_4/*", "backbone"]


def test_at_equal_cost_cheaper_updates_are_more_passes(settings, tmp_path):
    settings.update(workdir=str(tmp_path), seeds=(0,), sizes=(None,))
    names = ("none_frozen", "backbone_frozen_equal_cost", "top_1_equal_cost", "top_2_equal_cost")
    study = Unfreezing(**settings, arms=names, min_steps=0)
    groups = list(study.groups(layers=3, texts=96))
    # Two passes train 3 layers, for 18 forward passes of a layer; 2 of them keep what is frozen
    # below top_1, and 16 are left for 3 each. Heads alone would have any number.
    assert [group[0].config.epochs for group in groups] == [2, 20, 5, 2]
    assert [group[0].config.scenario for group in groups] == [
        *("none_frozen", "backbone_frozen", "top_1", "top_2")
    ]
    assert len({group[0].config.workdir for group in groups}) == 4


def test_the_report_tells_equal_cost_from_equal_updates():
    at_cost = [
        result
        for size, frozen, top in ((64, 0.55, 0.53), (256, 0.63, 0.63), (1024, 0.66, 0.76))
        for result in [
            *of(size, "backbone_frozen_equal_cost", frozen),
            *of(size, "top_1_equal_cost", top),
        ]
    ]
    results = [*RESULTS, *at_cost]
    gains = {gain.value: gain for gain in depth_gains(results, "test", (), COST)}
    # In each size the better of top_1_equal_cost and none_frozen on validation.
    assert {size: (gain.arm, round(gain.mean, 4)) for size, gain in gains.items()} == {
        64: ("top_1_equal_cost", -0.02),
        256: ("top_1_equal_cost", 0.0),
        1024: ("top_1_equal_cost", 0.1),
    }
    assert pays_text(results, "test") == pays_text(RESULTS, "test")
    text = to_markdown(document(results, [], {}))
    assert "at equal updates, unfreezing pays from 256 training sentences on" in text
    assert "at equal cost, unfreezing pays from 1,024 training sentences on" in text
    updates, cost = text.split("**At equal updates: minus backbone_frozen**")[1].split(
        "**At equal cost: minus backbone_frozen_equal_cost**"
    )
    assert "_equal_cost" not in updates
    assert "| `top_1_equal_cost` | −0.020" in cost


def test_gradual_unfreezing_and_its_control_have_the_same_rates(settings, tmp_path):
    settings.update(workdir=str(tmp_path), seeds=(0,), sizes=(None,))
    study = Unfreezing(**settings, arms=("at_once", "gradual_unfreezing", "none_frozen"))
    ((control,), (gradual,), (plain,)) = study.groups(layers=2, texts=96)
    labels = {"classifier": 1, "sentiment": 1}
    epochs = study.epochs_of(96)
    assert control.config.epochs == gradual.config.epochs == epochs
    setting = RecipeContext(num_layers=2, epochs=epochs, labels=labels)
    phases = phases_of(gradual.config, setting)
    (at_once,) = phases_of(control.config, setting)
    rates = {(phase.layer_decay, phase.schedule, phase.learning_rates) for phase in phases}
    assert rates == {(at_once.layer_decay, at_once.schedule, at_once.learning_rates)}
    assert at_once.scenario == "none_frozen"
    # A scenario is as long as its run.
    assert at_once.epochs is None
    assert epochs == pytest.approx(math.fsum(phase.epochs or 0 for phase in phases))
    assert (plain.config.layer_decay, plain.config.schedule) == (1.0, "linear")


def test_gradual_unfreezing_is_compared_with_its_control_where_there_is_one():
    without = to_markdown(document(RESULTS, [], {}))
    assert "learning rates and schedule differ from those of `none_frozen`, too" in without
    control = [
        result
        for size, score in ((64, 0.45), (256, 0.6), (1024, 0.72))
        for result in of(size, "at_once", score)
    ]
    text = to_markdown(document([*RESULTS, *control], [], {}))
    # 0, 0 and 0.03 in the three sizes.
    assert "unfreezing at once: +0.010" in text
    assert "`at_once` has the same learning rates and schedule." in text
    assert "schedule differ" not in text


def test_where_the_best_measurements_were():
    best = {"gradual_unfreezing": (1, 3, 3), "lp_ft": (2, 2, 2)}
    names = {"gradual_unfreezing": ("backbone_frozen", "top_1", "none_frozen"), "lp_ft": "ab"}
    results = [
        {
            **line(arm, seed, 0.5, 1.0),
            "phases": len(names[arm]),
            "best_phase": phase,
            "best_scenario": names[arm][phase - 1],
        }
        for arm, phases in best.items()
        for seed, phase in enumerate(phases)
    ]
    (table,) = best_phases([*results, line("none_frozen", 0, 0.5, 1.0)])
    assert isinstance(table, Table)
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["`gradual_unfreezing`", "1 `backbone_frozen`", "0", "2 `none_frozen`"],
        ["`lp_ft`", "0", "3 `b`", "—"],
    ]
    assert best_phases([line("none_frozen", 0, 0.5, 1.0)]) == []


def command(folder, flags):
    return [
        *(sys.executable, "-m", "experiments.unfreezing", f"--workdir={folder}", "--arms", *ARMS),
        *("--sizes", "16", "None", "--seeds", "0", "--min-steps=4", *flags),
    ]


def results_in(folder):
    # The rules of only_layer_0 are in the study's own folder, whose name is no result.
    texts = (folder / "results.jsonl").read_text().replace(str(folder), "FOLDER").splitlines()
    return [json.loads(text) for text in texts]


def test_a_killed_study_goes_on(small_settings, small_flags, tmp_path, capsys):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = forked.Popen(command(killed, small_flags), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # In the middle of the second arm, which has begun its epochs.
    assert any("arm 2 of 4: only_layer_0" in text for text in process.stderr)
    assert any("epoch 1 of 4" in text for text in process.stderr)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = results_in(killed)
    assert [result["arm"] for result in before] == list(ARMS[:1])

    # One after the other in this process, which traces the steps once.
    asked = {"arms": ARMS, "sizes": (16, None), "seeds": (0,), "min_steps": 4}
    for folder in (killed, whole):
        study = Unfreezing(**small_settings, **asked, workdir=str(folder))
        assert run(study, "the command") == 0
        assert "unfreezing" in capsys.readouterr().out
    after = results_in(killed)
    assert after[:1] == before
    assert [without_times(result) for result in after] == [
        without_times(result) for result in results_in(whole)
    ]
    arms = [(r["setting"]["max_train_examples"], r["seed"], r["arm"]) for r in after]
    assert arms == [(size, 0, arm) for size in (16, 96) for arm in ARMS]
    assert [r["epochs"] for r in after] == [4] * 2 + [2] * 2
    # One layer of 16 wide and 32 within: 4 x (16 x 16 + 16), 2 x 16 x 32 + 32 + 16, 2 norms of
    # 2 x 16, beside two heads of 3 classes each.
    layer, heads = 4 * 272 + 1024 + 48 + 64, 2 * (16 * 3 + 3)
    trained = {r["arm"]: r["trainable_parameters"] for r in after}
    assert trained["only_layer_0"] == layer + heads
    assert trained["backbone_frozen"] == heads
    for name in ("report.md", "report.html", "heat_map.png", "curves.png"):
        assert (killed / name).stat().st_size > 1000
    assert len(list(killed.glob("arms/*/checkpoints"))) == 1
