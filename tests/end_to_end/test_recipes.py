"""Whole runs of recipes on the tiny BERT: resumed anywhere, proved in every phase."""

import contextlib
import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.freezing import partition
from mtl_jax.freezing.partition import Partition
from mtl_jax.freezing.recipes import RECIPES
from mtl_jax.freezing.scenarios import FROZEN
from mtl_jax.runs.checkpoints.manager import CheckpointManager
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.notes import short_phases, without_effect
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.seed_run import SeedRun
from mtl_jax.runs.workdir import Workdir
from mtl_jax.tools.predict import Predictor
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.metrics import mean_score
from tests import forked
from tests.faults.runs import without_times


@pytest.fixture(scope="module")
def inputs(shared_settings):
    return Inputs(TrainConfig(**shared_settings, workdir=""))


@pytest.fixture
def recipe(settings, tmp_path):
    """Settings of a run of phases that are given as JSON objects, or of a recipe by name."""

    def make(phases, name="run", **changes):
        file = phases
        if not isinstance(phases, str):
            file = str(tmp_path / f"{name}.json")
            (tmp_path / f"{name}.json").write_text(json.dumps(phases))
        return TrainConfig(**settings | changes, workdir=str(tmp_path / name), recipe=file)

    return make


def log_of(config, event):
    log = read_lines(Workdir(config.workdir).path / "metrics.jsonl")
    return [record for record in log if record["event"] == event]


def certificate_of(config):
    return Workdir(config.workdir).certificate()


@contextlib.contextmanager
def checkpoints_of(config):
    with contextlib.closing(CheckpointManager(Workdir(config.workdir).checkpoints)) as checkpoints:
        yield checkpoints


def everything(config, inputs):
    """The last checkpoint as {item: {path: bytes}}, and what was saved beside its arrays."""
    with checkpoints_of(config) as checkpoints:
        last = checkpoints.last_step
        assert last is not None
        progress = checkpoints.progress(last)
        run = PhaseRun(config, inputs)
        phase = progress["phase_progress"]["phase"]
        run = run.at(phase, run.params) if phase else run
        params, state = checkpoints.restore(last, run.start(), run.partition)
    arrays = {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree.leaves_with_path((params, state.replace(trainable=None)))
    }
    return last, arrays, without_times(progress["phase_progress"] | {"features": None})


# Of a run that nothing is done to any more.
known_end = functools.cache(everything)


# Every way for a phase to end, to go on from the one before, and to be resumed in.
MIXED = [
    {
        "scenario": "backbone_frozen",
        "steps": 3,
        "task_weights": {"classifier": 1, "sentiment": 0},
        "schedule": "constant",
    },
    {"scenario": "top_1", "epochs": 9, "patience": 1, "keep_best": True, "layer_decay": 0.5},
    {"scenario": "sentiment_frozen", "steps": 3, "hold_frozen_heads": 2.0},
    {"scenario": "classifier_frozen", "steps": 4, "hold_frozen_heads": 2.0},
    {"scenario": "none_frozen", "steps": 3, "restart": False},
]
# So large that the second measurement is worse than the first, and the phase ends by it.
MIXED[1] |= {"learning_rates": {"head": 0.1, "backbone": 0.1}}


@pytest.fixture(scope="module")
def gradual(shared_settings, inputs, tmp_path_factory):
    """A whole run of gradual unfreezing, and its folder as a kill after each step leaves it."""
    folder = tmp_path_factory.mktemp("gradual")
    more = {"recipe": "gradual_unfreezing", "epochs": 4}
    return with_snapshots(shared_settings, inputs, folder, **more)


@pytest.fixture(scope="module")
def mixed(shared_settings, inputs, tmp_path_factory):
    """The same of ``MIXED``, its task weights learned."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "mixed.json").write_text(json.dumps(MIXED))
    more = {"recipe": str(folder / "mixed.json"), "weighting": "uncertainty", "epochs": 3}
    return with_snapshots(shared_settings, inputs, folder, **more)


def with_snapshots(settings, inputs, folder, **changes):
    # An epoch is 3 steps.
    settings = settings | {"checkpoint_every": 1, "batch_size": 32, **changes}
    config = TrainConfig(**settings, workdir=str(folder / "whole"))
    save = SeedRun.save

    def save_and_copy(seed_run, state, *args):
        save(seed_run, state, *args)
        seed_run.checkpoints.wait()
        shutil.copytree(folder / "whole", folder / f"after-{int(state.step)}")

    with pytest.MonkeyPatch.context() as patch:
        # A look at the folder: what is tested runs as it is.
        patch.setattr(SeedRun, "save", save_and_copy)
        result = train(config, inputs)
    return config, folder, result


# Of three phases of an epoch and a step.
STEPS = 12


def test_gradual_unfreezing_takes_one_more_layer_in_each_phase(gradual):
    config, _, result = gradual
    proofs = certificate_of(config)["phases"]
    assert [proof["scenario"] for proof in proofs] == [
        "backbone_frozen",
        "top_1",
        "none_frozen",
    ]
    head = [proof["labels"]["head"]["parameters"] for proof in proofs]
    assert len(set(head)) == 1
    trained = [proof["trainable_parameters"] for proof in proofs]
    stages = [
        {label for label in proof["labels"] if label.startswith("backbone/")} for proof in proofs
    ]
    layers = [f"backbone/layer_{i}" for i in (1, 0)]
    assert stages == [set(), set(layers[:1]), {*layers, "backbone/embeddings"}]
    assert trained == sorted(trained)
    assert all(proof["frozen_digest_unchanged"] for proof in proofs)
    assert [record["step"] for record in log_of(config, "phase")] == [4, 8, 12]
    assert result["phases"] == 3
    assert result["recipe"] == "gradual_unfreezing"
    assert result["step"] == STEPS
    assert result["trainable_parameters"] == result["total_parameters"] == trained[-1]


def test_the_mixed_recipe_has_every_end(mixed):
    config, folder, result = mixed
    left = {path.name for path in folder.glob("after-*")}
    assert left == {f"after-{step}" for step in range(1, result["step"] + 1)}
    over = [record["over"] for record in log_of(config, "phase")]
    assert over[0] == "3 steps done"
    assert over[1] == "no better for 1 measurement"
    assert over[2:] == ["3 steps done", "4 steps done", "3 steps done"]
    assert all(proof["frozen_digest_unchanged"] for proof in certificate_of(config)["phases"])


@pytest.mark.parametrize("phase", range(len(MIXED)))
def test_the_mixed_recipe_interrupted_at_any_step_ends_the_same(phase, mixed, inputs, tmp_path):
    config, folder, result = mixed
    ends = [0, *(record["step"] for record in log_of(config, "phase"))]
    assert (len(ends), ends[-1]) == (len(MIXED) + 1, result["step"])
    for step in range(ends[phase] + 1, ends[phase + 1] + 1):
        ends_the_same(step, config, folder, result, inputs, tmp_path / str(step))


# In a phase of four steps: before it is measured, when it is, and at its end.
@pytest.mark.parametrize("step", [1, 3, 4, 6, 8, 11, STEPS])
def test_interrupted_in_any_phase_it_ends_the_same(step, gradual, inputs, tmp_path):
    """At every single step: as the mixed recipe above."""
    config, folder, result = gradual
    ends_the_same(step, config, folder, result, inputs, tmp_path / "cut")


def ends_the_same(step, config, folder, result, inputs, cut):
    shutil.copytree(folder / f"after-{step}", cut)
    # What was logged after the last checkpoint comes again.
    with (cut / "metrics.jsonl").open("a") as log:
        log.write('{"event": "step", "step": 99}\n{"event": "ph')
    # Not saved at every step again: what it left there is what the next of these starts from.
    resumed = dataclasses.replace(config, workdir=str(cut), checkpoint_every=0)
    assert without_times(train(resumed, inputs)) == without_times(result)
    assert everything(resumed, inputs) == known_end(config, inputs)
    logs = [read_lines(Workdir(c.workdir).path / "metrics.jsonl") for c in (resumed, config)]
    assert without_times(logs[0]) == without_times(logs[1])
    assert certificate_of(resumed) == certificate_of(config)


def test_killed_at_a_phase_edge_it_resumes_to_the_same_end(gradual, inputs, flags, tmp_path):
    config, _, result = gradual
    flags = [*flags, "--recipe=gradual_unfreezing", "--checkpoint-every=1"]
    flags += ["--epochs=4", "--batch-size=32"]
    command = [sys.executable, "-m", "mtl_jax", "train", *flags, f"--workdir={tmp_path / 'cut'}"]
    with forked.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as victim:
        # The eighth step ends the second phase.
        forked.wait_until((tmp_path / "cut" / "checkpoints" / "8").exists, victim)
        victim.send_signal(signal.SIGKILL)
    assert Workdir(tmp_path / "cut").result() is None
    ended = forked.run(command, capture_output=True, text=True, check=True)
    assert "phase 3, none_frozen: 4 steps done" in ended.stderr
    assert without_times(Workdir(tmp_path / "cut").result()) == without_times(result)
    resumed = dataclasses.replace(config, workdir=str(tmp_path / "cut"))
    assert everything(resumed, inputs)[1:] == known_end(config, inputs)[1:]


@pytest.mark.parametrize("name", [*RECIPES, "top_down_2"])
def test_every_recipe_runs_and_proves_every_phase(name, recipe, inputs, tmp_path):
    config = recipe(name)
    ends = {}
    measured = SeedRun.save

    def look(seed_run, state, frozen, *args):
        measured(seed_run, state, frozen, *args)
        ends[seed_run.run.index] = jax.tree.map(np.array, Partition.merge(state.trainable, frozen))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeedRun, "save", look)
        result = train(config, inputs)
    proofs = certificate_of(config)["phases"]
    first = PhaseRun(config, inputs)
    assert len(proofs) == len(ends) == result["phases"]
    assert (result["stopped"] is None) == (len(proofs) == len(first.plans))
    before = first.params
    for index, proof in enumerate(proofs):
        plan = first.plans[index]
        frozen = plan.partition.split(ends[index])[1]
        assert proof["frozen_digest_after"] == partition.digest(frozen)
        assert proof["frozen_digest_unchanged"] is True
        if not plan.phase.keep_best:
            # Bit for bit what it was when the phase before ended.
            assert partition.digest(frozen) == partition.digest(plan.partition.split(before)[1])
        labels = dict(plan.partition.labels)
        sizes = {path: leaf.size for path, leaf in partition._flat(before).items()}
        assert proof["trainable_parameters"] == sum(
            size for path, size in sizes.items() if labels[path] != FROZEN
        )
        before = ends[index]
    epochs = log_of(config, "epoch")
    assert [record["phase"] for record in epochs] == sorted(record["phase"] for record in epochs)
    assert Predictor(config.workdir).evaluate("test") == result["test"]


def test_a_plateau_ends_a_phase_and_the_best_goes_on(recipe, inputs, capsys):
    """A rate so high that the second epoch is worse, then one of 0 that keeps what it gets."""
    phases = [
        {"scenario": "none_frozen", "epochs": 8, "patience": 2, "keep_best": True},
        {"scenario": "backbone_frozen", "steps": 1, "learning_rates": {"head": 1e-30}},
    ]
    phases[0] |= {"learning_rates": {"head": 0.3, "backbone": 0.3}, "schedule": "constant"}
    config = recipe(phases)
    train(config, inputs)
    epochs = log_of(config, "epoch")
    first, second = ([record for record in epochs if record["phase"] == phase] for phase in (1, 2))
    assert 3 <= len(first) < 8
    scores = [
        np.mean([record["validation"][task]["macro_f1"] for task in ("classifier", "sentiment")])
        for record in first
    ]
    assert int(np.argmax(scores)) == len(first) - 3
    over = log_of(config, "phase")[0]["over"]
    assert over == "no better for 2 measurements"
    assert f"phase 1, none_frozen: {over}" in capsys.readouterr().err
    best = first[int(np.argmax(scores))]
    for task in ("classifier", "sentiment"):
        assert second[0]["validation"][task]["macro_f1"] == best["validation"][task]["macro_f1"]


def test_auto_stops_where_nothing_is_gained(recipe, inputs, capsys):
    config = recipe("auto", head_learning_rate=1e-30, backbone_learning_rate=1e-30)
    result = train(config, inputs)
    assert result["phases"] == 2
    words = "phase 2 changed the best score by +0.0000, none_frozen asks for 0.002"
    assert words in result["stopped"]
    assert f"the recipe stops: {result['stopped']}" in capsys.readouterr().err


def test_seeds_go_through_phases_together(recipe, inputs, tmp_path):
    """Each as alone; a phase that freezes what the seeds have trained apart parts them."""
    phases = [{"scenario": "backbone_frozen", "steps": 3}, {"scenario": "top_1", "steps": 4}]
    one_at_a_time = recipe(phases, "alone")
    together = [
        dataclasses.replace(one_at_a_time, workdir=str(tmp_path / f"seed{seed}"), seed=seed)
        for seed in (0, 1)
    ]
    results: list[Any] = train_seeds(together, inputs)
    assert [result["phases"] for result in results] == [2, 2]
    alone = train(dataclasses.replace(one_at_a_time, seed=1), inputs)
    for task in ("classifier", "sentiment"):
        np.testing.assert_allclose(
            results[1]["validation"][task]["loss"], alone["validation"][task]["loss"], rtol=1e-4
        )
    assert all(result["frozen_digest_unchanged"] for result in results)

    back = recipe([{"scenario": "top_1", "steps": 1}, {"scenario": "backbone_frozen", "steps": 1}])
    apart = [
        dataclasses.replace(back, workdir=str(tmp_path / f"apart{seed}"), seed=seed)
        for seed in (0, 1)
    ]
    for config, outcome in zip(apart, train_seeds(apart, inputs), strict=True):
        assert isinstance(outcome, dict)
        kept = dataclasses.replace(config, workdir=config.workdir + "-tokens", prefix_cache=False)
        expected = train(kept, inputs)
        for task in ("classifier", "sentiment"):
            assert outcome["validation"][task]["loss"] == pytest.approx(
                expected["validation"][task]["loss"], rel=1e-4
            )


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        (
            [{"scenario": "backbone_frozen"}, {"scenario": "top_9"}],
            r"recipe .*run\.json: phase 2: scenario 'top_9' does not fit the backbone's 2 layers",
        ),
        (
            [{"scenario": "all_frozen"}, {"scenario": "top_1"}],
            r"phase 1: scenario 'all_frozen' changes nothing: it trains no parameter",
        ),
        (
            [{"scenario": "top_1", "task_weights": {"classifier": 0, "sentiment": 0}}],
            r"phase 1: scenario 'top_1' changes nothing: all task weights are 0",
        ),
        (
            [{"scenario": "top_1", "learning_rates": {"head": 0, "backbone": 0}}],
            r"phase 1: scenario 'top_1' changes nothing: all its learning rates are 0",
        ),
        (
            [{"scenario": "top_1", "learning_rates": {"backbone/layer_7": 1}}],
            r"phase 1: learning_rates names 'backbone/layer_7', which is not a label of any",
        ),
        (
            [{"scenario": "top_1", "learning_rates": {"head/classifer": 1}}],
            r"phase 1: learning_rates names 'head/classifer', .*: use backbone, head",
        ),
        (
            [{"scenario": "top_1", "epochs": 1}, {"scenario": "top_1", "epochs": 2}],
            "phase 2: changes nothing of phase 1: give it another scenario",
        ),
        (
            [{"scenario": "top_1"}, {"scenario": "top_2"}, {"scenario": "top_2", "patience": 3}],
            "phase 3: changes nothing of phase 2",
        ),
        (
            [
                {"scenario": "backbone_frozen"},
                {"scenario": "backbone_frozen", "learning_rates": {"backbone": 0.5}},
            ],
            "phase 2: changes nothing of phase 1",
        ),
        (
            [{"scenario": "top_1", "epochs": 2**31 - 1}],
            "would take 12884901882 steps, and 2147483647 can be counted: lower --epochs, --min",
        ),
        (
            [
                {"scenario": "classifier_frozen", "hold_frozen_heads": 2.0},
                {"scenario": "none_frozen"},
            ],
            "phase 1: hold_frozen_heads 2 is for a head that an earlier phase has trained, and it",
        ),
        (
            [{"scenario": "backbone_frozen"}, {"scenario": "top_1", "hold_frozen_heads": 0.5}],
            "phase 2: hold_frozen_heads 0.5 is for a head that an earlier phase has trained",
        ),
        (
            [{"scenario": "top_1", "warmup_fraction": 1}],
            "phase 1: its schedule rises for 12 of 12 steps, and ends before it began to fall",
        ),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_made(phases, words, recipe, inputs):
    config = recipe(phases)
    with pytest.raises(UserError, match=words):
        train(config, inputs)
    assert not Workdir(config.workdir).path.exists()


def test_a_phase_may_change_its_rates_weights_or_watch_alone(recipe, inputs):
    changes = [
        {},
        {"learning_rates": {"head": 0.5}},
        {"task_weights": {"classifier": 1, "sentiment": 0}},
    ]
    changes += [{"schedule": "constant"}, {"layer_decay": 0.5}, {"warmup_fraction": 0.5}]
    changes += [{"drift_limit": 0.5}]
    phases = [{"scenario": "top_2", **change} for change in changes]
    assert len(PhaseRun(recipe(phases), inputs).plans) == len(changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"recipe": "gradual_unfreezing", "schedule": "constant", "layer_decay": 0.9},
            [
                "--layer-decay 0.9 is without effect: every phase of gradual_unfreezing has its o",
                "--schedule constant is without effect: every phase of gradual_unfreezing has its",
            ],
        ),
        ({"recipe": "lp_ft", "schedule": "constant", "head_learning_rate": 0.5}, []),
        ({"recipe": "sequential_heads", "drift_limit": 0.2}, []),
        (
            {"scenario": "top_1", "drift_limit": 0.2},
            ["--drift-limit 0.2 is without effect: no phase of top_1 freezes a head that an earl"],
        ),
    ],
)
def test_a_setting_that_no_phase_has_a_use_for_is_told(changes, words, settings, inputs):
    settings = {name: value for name, value in settings.items() if name not in changes}
    config = TrainConfig(**settings | {"epochs": 4} | changes, workdir="")
    notes = without_effect(config, PhaseRun(config, inputs).plans)
    assert len(notes) == len(words)
    for note, start in zip(notes, words, strict=True):
        assert note.startswith(f"note: {start}")


@pytest.mark.parametrize(
    ("changes", "phases", "words", "epochs"),
    [
        ({"scenario": "top_1", "epochs": 1}, None, "top_1 takes 6 steps", 2),
        (
            {"recipe": "top_down_2", "epochs": 3},
            None,
            "phase 1 (backbone_frozen) takes 9 steps, phase 2 (top_2) takes 9 steps",
            4,
        ),
        (
            {"recipe": "gradual_unfreezing", "epochs": 1},
            None,
            "phase 1 (backbone_frozen) takes 2 steps, phase 2 (top_1) takes 2 steps, "
            "phase 3 (none_frozen) takes 2 steps",
            5,
        ),
        ({"epochs": 2}, [("top_1", 2), ("top_2", 1.5)], "phase 2 (top_2) takes 9 steps", None),
        ({"scenario": "all_frozen", "epochs": 1}, None, None, None),
        ({"scenario": "none_frozen", "epochs": 2}, None, None, None),
    ],
)
def test_a_phase_of_too_few_steps_is_told_with_what_mends_it(
    changes, phases, words, epochs, recipe, settings, inputs
):
    """An epoch of these texts is 6 steps."""
    if phases:
        config = recipe([{"scenario": name, "epochs": share} for name, share in phases], **changes)
    else:
        config = TrainConfig(**settings | changes, workdir="")

    def told(config):
        return short_phases(config, PhaseRun(config, inputs).plans)

    if words is None:
        assert told(config) == []
        return
    remedy = f"--epochs {epochs} gives 10 or more" if epochs else "raise their epochs or steps in "
    (warning,) = told(config)
    assert warning.startswith(
        f"warning: {words}: fewer than 10 steps hardly train anything; {remedy}"
    )
    if epochs:
        assert told(dataclasses.replace(config, epochs=epochs)) == []
        assert told(dataclasses.replace(config, epochs=epochs - 1)) != []


def test_what_is_without_effect_is_said_once_and_the_run_goes_on(settings, tmp_path, capsys):
    settings |= {"epochs": 4, "layer_decay": 0.9}
    config = TrainConfig(**settings, recipe="gradual_unfreezing", workdir=str(tmp_path / "run"))
    assert train(config)["phases"] == 3
    said = capsys.readouterr().err
    assert said.count("note: --layer-decay 0.9 is without effect") == 1
    assert said.count("warning: phase 1 (backbone_frozen) takes 8 steps, phase 2 (top_1)") == 1


def test_phases_of_one_task_go_on_in_the_same_texts(recipe, inputs):
    """All texts here that have a label have been seen once after one epoch in three phases."""
    phases = [
        {"scenario": "top_1", "epochs": 1 / 3},
        {"scenario": "top_2", "epochs": 1 / 3},
        {"scenario": "top_1", "epochs": 1 / 3},
    ]
    seen = []
    draw = SeedRun.draw

    def look(seed_run, steps):
        batches = draw(seed_run, steps)
        seen.extend(batch["example"][batch["example"] >= 0] for batch in batches)
        return batches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeedRun, "draw", look)
        train(recipe(phases, epochs=1), inputs)
    assert sorted(np.concatenate(seen).tolist()) == list(range(96))


def test_a_phase_may_be_so_many_steps_long(recipe):
    """Without inputs that a caller shares, so that all is said that a run says."""
    result = train(recipe([{"scenario": "backbone_frozen", "steps": 3}, {"scenario": "top_1"}]))
    assert result["step"] == 3 + 2 * 96 // 16


def test_the_end_of_heads_alone_is_held_against_the_phases_before(recipe, inputs):
    """And their measurements before it are not, whatever they score."""
    first = {"scenario": "top_1", "epochs": 6, "learning_rates": {"head": 0.05}}
    heads = {"scenario": "backbone_frozen", "epochs": 5, "learning_rates": {"head": 0.5}}
    config = recipe([first, heads])
    result = train(config, inputs)
    scores = [mean_score(record["validation"]) for record in log_of(config, "epoch")]
    assert len(scores) == 11
    before = max(scores[:6])
    best = 11 if scores[10] > before else 1 + scores.index(before)
    assert result["best_epoch"] == best


def test_top_down_of_more_layers_than_there_are(recipe, inputs):
    with pytest.raises(
        UserError, match="recipe top_down_4: phase 2: scenario 'top_4' does not fit"
    ):
        train(recipe("top_down_4"), inputs)


def test_a_shared_schedule_goes_on(recipe, inputs):
    """Two phases with one schedule take the rates of one of their length."""
    halves = [{"scenario": "none_frozen", "epochs": 1}, {"scenario": "none_frozen", "epochs": 1}]
    # The second differs in nothing that changes a number.
    halves[1] |= {"restart": False, "drift_limit": 0.5}
    whole = [{"scenario": "none_frozen", "epochs": 2}]
    results = [train(recipe(phases, f"of-{len(phases)}"), inputs) for phases in (halves, whole)]
    for split in ("train", "test"):
        for task in ("classifier", "sentiment"):
            losses = [result[split][task]["loss"] for result in results]
            np.testing.assert_allclose(*losses, rtol=1e-5)
    assert [result["best_epoch"] for result in results].count(results[0]["best_epoch"]) == 2
