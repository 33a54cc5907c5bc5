"""The study of a scarce task: its arms and findings by hand, and a real run."""

import dataclasses
import gc
import json
import weakref

import pytest

from mtl_jax.config.train import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.studies.builtin.scarce_task import Labelled, ScarceTask, plan_of, run
from mtl_jax.studies.inputs_pool import InputsPool
from mtl_jax.studies.report.render import to_markdown
from mtl_jax.studies.report.scarce_report import document, judge
from mtl_jax.studies.report.scarce_report import of as of_task
from mtl_jax.studies.stats.claim_specs import forgotten
from tests.synthetic_study import line, metrics


def of(fraction, arm, scores):
    lines = []
    # Three times over: a permutation test takes six seeds or more.
    for seed, (classifier, sentiment) in enumerate(3 * scores):
        result = line(arm, seed, sentiment, 10.0)
        test = metrics(sentiment)
        test["classifier"]["macro_f1"] = classifier
        lines.append(
            {**result, "test": test, "setting": {"scarce_task": "sentiment", "fraction": fraction}}
        )
    return lines


RESULTS = [
    *of(0.01, "joint", [(0.90, 0.50), (0.90, 0.51), (0.90, 0.52)]),
    *of(0.01, "scarce_head_last", [(0.91, 0.54), (0.91, 0.55), (0.91, 0.561)]),
    *of(0.01, "single_task", [(0.1, 0.45), (0.1, 0.46), (0.1, 0.475)]),
    *of(1.0, "joint", [(0.90, 0.80), (0.90, 0.81), (0.90, 0.82)]),
    *of(1.0, "scarce_head_last", [(0.90, 0.80), (0.90, 0.83), (0.90, 0.80)]),
    *of(1.0, "single_task", [(0.1, 0.80), (0.1, 0.80), (0.1, 0.81)]),
]


def test_what_freezing_the_scarce_head_buys_is_said_first():
    text = to_markdown(document(RESULTS, [], {}))
    assert text.split("\n\n")[2] == (
        "For sentiment on the test split `scarce_head_last` is better than training all heads from "
        "the start (`joint`). `single_task` is worse."
    )
    # 0.0403 with 1 % and 0 with all of the labels.
    assert (
        "Training the scarce head last, its loss off until then, changes the sentiment macro-F1 on "
        "the test split by +0.020"
    ) in text
    assert (
        "the mean over 1 % and 100 % of the labels, paired by seed: better (corrected p = 0.004); "
        "better with 1 %; not told apart with 100 %."
    ) in text
    assert "1 % of the labels: `scarce_head_last` +0.040" in text
    tables = text.split("**classifier macro-F1 on the test split")[1]
    # In the details on the claims.
    assert "at 1 % of the sentiment labels" in text
    # The untrained head of the other task is no result.
    assert "single_task" not in tables.split("## Cost")[0]
    assert "| `scarce_head_last` | 0.910 ± 0.000 | 0.900 ± 0.000 |" in tables
    assert "](curves.png)" in text


def test_every_arm_is_in_the_family_and_in_the_claim():
    judgement = judge(RESULTS, (), of_task("sentiment", "test"))
    # Two arms at two fractions, and over both; the claim on one of these arms is among them.
    assert [each.arm for each in judgement.overall] == ["scarce_head_last", "single_task"]
    assert [(each.arm, each.value) for each in judgement.within] == [
        *(("scarce_head_last", 0.01), ("scarce_head_last", 1.0)),
        *(("single_task", 0.01), ("single_task", 1.0)),
    ]
    assert (len(judgement.family), len(judgement.details)) == (2, 4)
    text = to_markdown(document(RESULTS, [], {}))
    (claim,) = [row for row in text.splitlines() if row.startswith("| Training the head of")]
    # All of nine seeds have one sign: 2/2^9, in the lead as in the claim.
    assert "+0.020" in claim
    assert "corrected p 0.004, 9 seeds" in claim


def test_a_part_without_results_is_not_averaged_silently():
    failed = [r for r in RESULTS if r["arm"] == "joint" or r["setting"]["fraction"] < 1]
    text = to_markdown(document(failed, [], {}))
    assert "against joint training, the mean over 1 % of the labels, paired by seed" in text


def test_nothing_to_compare(tmp_path):
    alone = [result for result in RESULTS if result["arm"] == "joint"]
    text = to_markdown(document(alone, [], {}))
    assert "No arm can be compared" in text


def test_mistakes(tmp_path):
    for fraction in (0.0, 1.5):
        with pytest.raises(UserError, match=f"--fractions {fraction} must be above 0"):
            ScarceTask(workdir=str(tmp_path), fractions=(fraction,))
    with pytest.raises(UserError, match="--arms is empty"):
        ScarceTask(workdir=str(tmp_path), arms=())


# Of 96 texts: all but 12 have a label of the scarce task, all but 9 one of the other.
LABELLED = Labelled(scarce=84, others=87, alone=9)


def test_every_arm_makes_as_many_updates_on_the_scarce_labels(settings, tmp_path):
    study = ScarceTask(**settings, workdir=str(tmp_path), fractions=(1.0, 0.02), seeds=(0,))
    study = dataclasses.replace(study, min_steps=10)
    # Of 84 labels 2 % are 2. Of 87 texts in 6 batches three have 14 and three 15, which have
    # neither of the two with 73 x 72 and 72 x 71 of 87 x 86 cases: some 1.84 have one.
    of_pass = LABELLED.updates_of_pass(0.02, 16)
    assert of_pass == pytest.approx(6 - 3 * (73 * 72 + 72 * 71) / (87 * 86))
    assert [study.epochs_of(fraction, LABELLED) for fraction in (0.02, 1.0)] == [6, 2]
    assert study.updates(0.02, LABELLED) == round(6 * of_pass) == 11
    arms = {(arm.name, arm.setting["fraction"]): arm.config for (arm,) in study.groups(LABELLED)}
    assert list(arms) == [(name, fraction) for fraction in (0.02, 1.0) for name in study.arms]
    of_few = {name: config for (name, fraction), config in arms.items() if fraction == 0.02}
    assert {config.data.label_fraction for config in of_few.values()} == {("sentiment=0.02",)}
    assert (of_few["joint"].scenario, of_few["joint"].epochs) == ("none_frozen", 6)
    assert {name: config.recipe for name, config in of_few.items() if name != "joint"} == {
        name: str(tmp_path / f"recipes/{name}-0.02.json") for name in study.arms[1:]
    }
    files = study.files(LABELLED)
    everything = {"scenario": "none_frozen", "epochs": 3.0}
    first = {"scenario": "sentiment_frozen", "epochs": 3.0, "task_weights": {"sentiment": 0.0}}
    last = {"scenario": "classifier_frozen", "steps": 6, "task_weights": {"classifier": 0.0}}
    control = {**last, "scenario": [["sentiment/*", "head"], ["*", "frozen"]]}
    assert {name: files[f"recipes/{name}-0.02.json"] for name in study.arms[1:]} == {
        # Both losses are on: no phase has task weights of its own.
        "scarce_head_frozen": [{"scenario": "sentiment_frozen", "epochs": 3.0}, everything],
        "scarce_head_last": [first, {**everything, "epochs": 6}],
        "sequential_heads": [first, last, everything],
        "sequential_control": [first, control, everything],
        "single_task": [{"scenario": "none_frozen", "steps": 11}],
    }
    assert dataclasses.replace(study, arms=("joint",)).files(LABELLED) == {}
    alone = of_few["single_task"]
    assert alone.data.label_columns == ("sentiment=mood",)
    assert alone.weights == {"sentiment": 1.0}
    # A pass over 2 texts is one step of its eleven.
    assert (alone.measure_every, of_few["joint"].measure_every) == (2, 1)
    other = dataclasses.replace(study, scarce_task="classifier")
    other = other.config("single_task", 0, 0.1, Labelled(87, 84, 12))
    assert other.data.label_columns == ("classifier=topic",)
    assert other.weights == {"classifier": 1.0}


def test_a_fraction_of_the_other_task_holds_in_every_arm(settings, tmp_path):
    data = dataclasses.replace(settings["data"], label_fraction=("classifier=0.5",))
    shared = {**settings, "data": data, "workdir": str(tmp_path), "seeds": (0,)}
    study = ScarceTask(**shared, fractions=(0.1, 0.3))
    for arm in study.arms:
        fractions = study.config(arm, 0, 0.3, LABELLED).data.label_fractions
        other = {} if arm == "single_task" else {"classifier": 0.5}
        assert fractions == {"sentiment": 0.3, **other}
    assert plan_of(study, InputsPool()).record["settings"]["data"]["label_fraction"] == (
        "classifier=0.5",
    )
    thinned = dataclasses.replace(data, label_fraction=("sentiment=0.5",))
    with pytest.raises(UserError, match="--label-fraction names sentiment, of whose labels --f"):
        ScarceTask(**{**shared, "data": thinned})


def test_predictions_are_held_where_a_trained_head_is_frozen(settings, tmp_path):
    shared = {**settings, "workdir": str(tmp_path), "seeds": (0,), "hold_frozen_heads": 2.0}
    study = ScarceTask(**shared)
    does = {arm: study.config(arm, 0, 0.3, LABELLED).hold_frozen_heads for arm in study.arms}
    assert does == dict.fromkeys(study.arms, 0.0) | {"sequential_heads": 2.0}
    with pytest.raises(
        UserError, match=r"--hold-frozen-heads 2 is for .* and no arm freezes such a"
    ):
        ScarceTask(**shared, arms=("joint", "scarce_head_last"))


def test_two_data_sets(settings, reviews, tmp_path):
    """The task that is left out takes its own files with it."""
    train = reviews / "train.csv"
    half = reviews / "validation.csv"
    data = DataConfig(
        train_file=(f"classifier={half}", f"sentiment={train}"),
        validation_file=(f"classifier={half}",),
        text_column=("classifier=text", "sentiment=text"),
        label_columns=("classifier=topic", "sentiment=mood"),
    )
    weights = ("classifier=balanced", "sentiment=balanced")
    study = ScarceTask(
        **{**settings, "data": data},
        workdir=str(tmp_path),
        seeds=(0,),
        class_weights=weights,
    )
    config = study.config("single_task", 0, 0.3, LABELLED)
    assert config.class_weights == ("sentiment=balanced", "none")
    alone = config.data
    assert alone.train_file == (f"sentiment={train}",)
    assert (alone.validation_file, alone.text_column) == (None, ("sentiment=text",))
    assert [origin.name for origin in alone.origins] == [str(train)]
    joint = study.config("joint", 0, 0.3, LABELLED).data
    assert joint.whole() == data
    assert (joint.train_subset, study.config("joint", 4, 0.3, LABELLED).data.train_subset) == (0, 4)


def test_what_was_read_is_kept_as_long_as_an_arm_needs_it(settings, tmp_path):
    pool = InputsPool()
    study = ScarceTask(**settings, workdir=str(tmp_path), seeds=(0,))
    read = weakref.ref(pool.get(study))
    plan = plan_of(study, pool)
    assert read() is not None
    # The arms have some of its labels, or one of its tasks.
    single = [g[0].config for g in plan.groups if g[0].name == "single_task"]
    pool.keep_only([group[0].config for group in plan.groups])
    assert read() is not None
    del plan
    pool.keep_only(single)
    gc.collect()
    assert read() is None


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("top_4", "scenario 'top_4' does not fit the backbone's 2 layers"),
        ("top_down_9", "recipe top_down_9: phase 2: scenario 'top_9' does not fit"),
        ("scarce_head_lost", "did you mean scarce_head_last.*use joint, scarce_head_frozen, "),
    ],
)
def test_arms_are_checked_before_any_is_trained(arm, words, settings, tmp_path):
    study = ScarceTask(**settings, workdir=str(tmp_path / "study"), arms=("joint", arm))
    with pytest.raises(UserError, match=words):
        run(study, "the command")
    assert not (tmp_path / "study").exists()


def test_a_run(small_settings, tmp_path):
    asked = {**small_settings, "workdir": str(tmp_path), "fractions": (0.1,), "seeds": (0,)}
    study = ScarceTask(**asked, min_steps=7)
    assert run(study, "the command") == 0
    results = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text().splitlines()]
    arms = {result["arm"]: result for result in results}
    assert tuple(arms) == study.arms
    for name, result in arms.items():
        assert result["setting"] == {"scarce_task": "sentiment", "fraction": 0.1}
        if name == "single_task":
            assert result["train"].keys() == {"sentiment"}
        else:
            assert result["train"]["classifier"]["examples"] == 87
        assert result["train"]["sentiment"]["examples"] == 8
    frozen, joint = arms["scarce_head_frozen"], arms["joint"]
    assert (frozen["phases"], frozen["epochs"]) == (2, joint["epochs"]) == (2, 2)
    counts = {name: result["updates_by_task"]["sentiment"] for name, result in arms.items()}
    # 8 labels are in 4.6 of 6 batches, by chance in some more or less, and in all where alone.
    assert counts["single_task"] == arms["single_task"]["step"] == 9
    assert all(abs(count - 9) <= 2 for count in counts.values())
    assert joint["updates_by_task"]["classifier"] == joint["step"] == 12
    # The phase of the scarce head alone leaves the other task what it was.
    assert forgotten(arms["sequential_control"]) == 0
    assert forgotten(arms["sequential_heads"]) is not None
    report = (tmp_path / "report.md").read_text()
    assert "## Runs" in report
    (row,) = [
        text
        for text in report.split("**Forgetting:")[1].split("**")[1].splitlines()
        if text.startswith("| `sequential_control`")
    ]
    assert row.startswith("| `sequential_control` | 0.000 / ")
    assert "**Updates with labels of sentiment / classifier**" in report
