"""The benchmark: its arithmetic by hand, and real processes."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks.__main__ import Benchmark
from experiments.benchmarks.cases import CASES, Job
from experiments.benchmarks.judges import OURS, THEIRS, Goal, forward_flops, title
from experiments.benchmarks.table import Circumstances, build, outcome_table, sample_table
from experiments.benchmarks.whole_runs import _command
from experiments.benchmarks.workers import MEASUREMENTS
from mtl_jax.cli.flags import Command
from mtl_jax.config.train import DataConfig
from mtl_jax.core.command_line import parse
from mtl_jax.core.errors import UserError
from mtl_jax.studies.report.render import to_markdown
from tests import forked


def training(seconds, steps=1.0, **others):
    sample = {"seconds": seconds, "train_seconds": steps, "scenario": "none_frozen"}
    return {**sample, "epochs": 1, "train_examples": 100, "compile_seconds": 0.0, **others}


def test_useful_flops_by_hand():
    # h = 2, i = 3: 2 n (16 + 12) = 56 n in products with weights, 8 sum(l^2) in attention.
    assert forward_flops(np.array([1, 2, 3]), 2, 3, 1) == 56 * 6 + 8 * 14
    assert forward_flops(np.array([1, 2, 3]), 2, 3, 5) == 5 * (56 * 6 + 8 * 14)
    # A long text costs more than its halves, by attention alone.
    whole, halves = (forward_flops(np.array(n), 2, 3, 1) for n in ([4], [2, 2]))
    assert whole - halves == 8 * (16 - 8)


def test_speed_up_is_the_ratio_of_medians():
    samples = {
        OURS: [training(2.0), training(1.0), training(30.0)],
        THEIRS: [training(17.0), training(10.0), training(18.0)],
    }
    (outcome,) = CASES["backbone_frozen"].judge(samples)
    assert outcome.value == 17 / 2
    assert outcome.verdict == "reached"
    assert outcome.measured.text == "2.00 s"
    assert outcome.measured.aside == "(1.00–30.00)"
    samples[THEIRS] = samples[THEIRS][:2]
    (outcome,) = CASES["backbone_frozen"].judge(samples)
    assert outcome.value == 13.5 / 2
    assert outcome.verdict == "missed"


def test_a_recipe_is_judged_by_the_whole_run():
    samples = {
        "gradual_unfreezing": [training(5.0), training(7.0)],
        "none_frozen": [training(10.0), training(14.0)],
    }
    (outcome,) = CASES["gradual_unfreezing"].judge(samples)
    assert (outcome.value, outcome.verdict) == (0.5, "reached")
    samples["gradual_unfreezing"] = [training(9.0)]
    (outcome,) = CASES["gradual_unfreezing"].judge(samples)
    assert (outcome.value, outcome.verdict) == (0.75, "missed")
    (_, job), _ = CASES["gradual_unfreezing"].jobs
    config = Benchmark(workdir="w").config(job)
    assert (config.recipe, config.scenario, config.name) == (
        "gradual_unfreezing",
        None,
        "gradual_unfreezing",
    )


def test_full_fine_tuning_is_judged_by_its_steps():
    samples = {OURS: [training(9.0, steps=2.0)], THEIRS: [training(1.0, steps=3.0)]}
    (outcome,) = CASES["none_frozen"].judge(samples)
    assert outcome.value == 1.5
    assert outcome.measured.text == "20.00 ms a sentence"
    samples[OURS] = [training(9.0, steps=6.0, epochs=2)]
    (outcome,) = CASES["none_frozen"].judge(samples)
    assert outcome.value == 1.0
    assert outcome.verdict == "reached"


def test_whole_processes_and_second_starts():
    samples = {OURS: [training(60.0, epochs=3)], THEIRS: [training(93.0, epochs=3)]}
    (outcome,) = CASES["whole_run"].judge(samples)
    assert (outcome.value, outcome.verdict) == (1.55, "reached")
    assert outcome.about == "`none_frozen`, 3 epochs of 100 sentences: whole process"
    starts = {
        "finished": [{"seconds": 3.0, "first_seconds": 30.0}],
        "killed": [{"seconds": 9.0, "first_seconds": 20.0}, {"seconds": 10.0, "first_seconds": 8}],
    }
    finished, killed = CASES["second_start"].judge(starts)
    assert (finished.value, finished.verdict) == (3.0, "reached")
    assert (killed.value, killed.verdict) == (9.5, "missed")
    assert killed.against.text == "14.00 s"


def test_a_whole_process_has_the_settings_of_the_job(settings, tmp_path):
    asked = Benchmark(workdir=str(tmp_path), data=settings["data"], backbone=settings["backbone"])
    (_, job), _ = CASES["whole_run"].jobs
    config = asked.config(job)
    _, _, _, *words = _command(config, tmp_path / "run")
    assert parse(Command, words, "mtl-jax", "").config() == replace(
        config, workdir=str(tmp_path / "run"), cache_folder=str(tmp_path / "run-cache")
    )


def test_what_trains_little_is_judged_by_its_steps_and_its_moments():
    samples = {
        "lora_8": [training(1.0, steps=2.0, optimizer_state_bytes=1)],
        "none_frozen": [training(1.0, steps=3.0, optimizer_state_bytes=40)],
    }
    steps, state = CASES["lora_8"].judge(samples)
    assert (steps.value, steps.verdict) == (1.5, "reached")
    assert (state.value, state.verdict) == (2.5, "missed")
    assert CASES["bias_only"].jobs[1] == ("none_frozen", dict(CASES["none_frozen"].jobs)[OURS])


def test_extraction_is_judged_by_sentences_a_second():
    samples = {
        OURS: [{"sentences": 100, "seconds": s} for s in (1.0, 2.0, 0.5)],
        THEIRS: [{"sentences": 100, "seconds": s} for s in (1.5, 1.4, 9.0)],
    }
    (outcome,) = CASES["extract"].judge(samples)
    assert (outcome.value, outcome.verdict) == (pytest.approx(1.5), "reached")
    assert outcome.measured.text == "100.0 a second"
    assert [job.sentences for _, job in CASES["extract"].jobs] == [5000, 5000]
    (outcome,) = CASES["extract_bfloat16"].judge(samples)
    assert (outcome.name, outcome.goal) == ("extract_bfloat16", Goal(low=1))
    assert {job.dtype for _, job in CASES["extract_bfloat16"].jobs} == {"bfloat16"}


def test_extraction_is_measured(settings, tmp_path):
    asked = Benchmark(workdir=str(tmp_path), data=settings["data"], backbone=settings["backbone"])
    job = Job("extract", sentences=7)
    sample = MEASUREMENTS["extract"](asked.config(job), job, "cpu")
    assert sample["sentences"] == 7
    assert sample["seconds"] > sample["compile_seconds"] > 0


def test_share_of_peak_counts_three_forward_passes():
    samples = {
        OURS: [training(1.0, steps=2.0, forward_flops=50e9)],
        THEIRS: [training(1.0, steps=3.0, forward_flops=50e9)],
        "peak": [{"flops_per_second": rate} for rate in (90e9, 100e9, 120e9)],
    }
    ours, theirs = CASES["share_of_peak"].judge(samples)
    assert ours.value == pytest.approx(75)
    assert ours.verdict == "reached"
    assert theirs.value == pytest.approx(50)
    assert theirs.goal is None
    alone = {label: given for label, given in samples.items() if label != THEIRS}
    assert CASES["share_of_peak"].judge(alone) == [ours]


def test_optimizer_state_growth_and_many_at_once():
    sizes = {"backbone_frozen": 1, "none_frozen": 2000}
    samples = {name: [training(1.0, optimizer_state_bytes=n)] for name, n in sizes.items()}
    (outcome,) = CASES["optimizer_state"].judge(samples)
    assert outcome.value == pytest.approx(0.05)
    assert outcome.verdict == "reached"

    grown = {}
    for name, steps in (("backbone_frozen", 10.5), ("none_frozen", 11.5)):
        grown[f"{name}, small"] = [training(1.0, peak_bytes=2**20)]
        large = training(9.0, steps=steps, train_examples=1000, peak_bytes=2**21)
        grown[f"{name}, large"] = [large]
    frozen, full = CASES["growth"].judge(grown)
    assert (frozen.value, full.value) == (pytest.approx(1.05), pytest.approx(1.15))
    assert (frozen.verdict, full.verdict) == ("reached", "missed")
    assert "2.0 MiB against 1.0 MiB" in frozen.about
    grown["none_frozen, large"] = [training(9.0, train_examples=500)]
    with pytest.raises(UserError, match="500 training sentences are not ten times 100"):
        CASES["growth"].judge(grown)

    for name, limit in (("heads", 10), ("seeds", 2.5)):
        key = "seconds" if name == "heads" else "train_seconds"
        many = {"many": [{key: 3 * limit}], "one": [{key: 2.0}]}
        (outcome,) = CASES[name].judge(many)
        assert outcome.value == 1.5 * limit
        assert outcome.verdict == "missed"


def test_processes_and_checkpoints():
    samples = {"two processes": [training(9.0, steps=2.5)], "one process": [training(1.0, steps=2)]}
    (outcome,) = CASES["processes"].judge(samples)
    assert (outcome.value, outcome.verdict) == (0.8, "reached")
    two, one = (job for _, job in CASES["processes"].jobs)
    assert [(job.processes, job.devices) for job in (two, one)] == [(2, 1), (1, 2)]
    # 25 steps of 0.4 s: checkpoints after 10 and 20, 0.3 s each, against 20 s of 50 steps.
    never = training(12.0, steps=10.0, batch_size=4)
    samples = {"often": [training(12.6, steps=10.2, batch_size=4)], "never": [never]}
    (outcome,) = CASES["checkpoints"].judge(samples)
    assert outcome.value == pytest.approx(1.5)
    assert "2 checkpoints beside the last" in outcome.about
    # That after the last step is saved in any case.
    samples = {"often": [training(12.6)], "never": [{**never, "batch_size": 5}]}
    (outcome,) = CASES["checkpoints"].judge(samples)
    assert "1 checkpoint beside the last" in outcome.about
    (_, often), (_, never_job) = CASES["checkpoints"].jobs
    config = Benchmark(workdir="w").config(often)
    assert (config.checkpoint_every, never_job.checkpoint_every) == (10, 0)


def test_goals_in_words():
    assert Goal(low=8).text("×") == "at least 8×"
    assert Goal(high=0.1).text(" %") == "at most 0.1 %"
    assert Goal(0.9, 1.1).text("×") == "0.9 to 1.1×"
    assert [Goal(0.9, 1.1).reached(value) for value in (0.89, 0.9, 1.1, 1.11)] == [
        *(False, True, True, False)
    ]


def test_the_page_has_the_command_the_figures_and_what_is_missing():
    samples = {OURS: [training(2.0)], THEIRS: [training(19.0)]}
    outcomes = CASES["backbone_frozen"].judge(samples)
    job = {"fresh": False}
    extra = {"macro_f1": 0.5, "optimizer_state_bytes": 2048, "job": job}
    first = training(2.0, **{**extra, "compile_seconds": 7.0})
    records = [
        {"side": OURS, **first},
        {"side": OURS, **training(4.0, **extra)},
        {"side": THEIRS, **training(19.0, **extra)},
        {"side": OURS, "job": job, "flops_per_second": 1.0},
    ]
    machine = Circumstances(
        "python -m x", "a machine", 0.25, "2026-01-02", {"jax": "1.2"}, 2, "mine", "bert", 32
    )
    text = to_markdown(build(outcomes, ["`top_2` failed: why"], records, machine))
    for words in (
        "    python -m x\n",
        "a machine, load 0.2 at the start",
        "2026-01-02",
        "jax 1.2",
        "| 9.50× | at least 8× | reached |",
        "**`top_2` failed: why**",
        "| 2.0 KiB |",
        "Useful FLOPs count",
    ):
        assert words in text
    assert [cell.text for cell in outcome_table(outcomes).rows[0].cells[-3:]] == [
        *("9.50×", "at least 8×", "reached")
    ]
    ours, theirs = sample_table(records[:3]).rows
    assert ours.cells[2].plain == "3.00 s (2.00–4.00)"
    assert ours.cells[4].text == "7.0 s"
    assert theirs.cells[4].text == "—"


def test_settings_of_a_job(settings, tmp_path):
    asked = Benchmark(
        workdir=str(tmp_path), data=settings["data"], backbone="x", sentences_scale=0.5
    )
    config = asked.config(Job("train", "top_2", sentences=1024, epochs=5))
    assert (config.scenario, config.epochs, config.pooling) == ("top_2", 5, "mean")
    assert config.data == replace(settings["data"], max_train_examples=512)
    wrong: dict[str, Any]
    for wrong, words in (
        ({"rows": ("top_3",)}, "--rows top_3: no such row"),
        ({"rows": ()}, "--rows is empty"),
        ({"repeats": 0}, "--repeats 0 must be above 0"),
        ({"sentences_scale": math.nan}, "--sentences-scale nan must be above 0"),
        ({"data": DataConfig(max_train_examples=5)}, "use --sentences-scale"),
    ):
        with pytest.raises(UserError, match=words):
            Benchmark(workdir="x", **wrong)


def test_seeds_at_once_are_measured_together(settings, tmp_path):
    asked = Benchmark(workdir=str(tmp_path), data=settings["data"], backbone=settings["backbone"])
    job = Job("seeds", sentences=32, variants=3)
    sample = MEASUREMENTS["seeds"](asked.config(job), job, "cpu")
    assert (sample["seeds"], sample["train_examples"], sample["epochs"]) == (3, 32, 1)
    assert 0 < sample["train_seconds"] < sample["seconds"]
    assert sample["compile_seconds"] > 0
    assert title(sample) == "`backbone_frozen`, 1 epoch of 32 sentences, 3 seeds at once"
    assert title({**sample, "seeds": 1}) == "`backbone_frozen`, 1 epoch of 32 sentences"
    assert list(tmp_path.iterdir()) == []


def benchmark(folder, flags, *rows):
    own = ("--epochs", "--parallel", "--cache-folder", "--checkpoint-minutes")
    kept = [flag for flag in flags if not flag.startswith(own)]
    kept = [flag for flag in kept if "learning-rate" not in flag]
    return forked.run(
        [
            *(sys.executable, "-m", "experiments.benchmarks", f"--workdir={folder}"),
            *("--repeats=1", "--sentences-scale=0.01", *kept, "--rows", *rows),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_benchmark_in_real_processes(flags, tmp_path):
    done = benchmark(tmp_path / "new", flags, "backbone_frozen", "optimizer_state", "seeds")
    assert done.returncode == 0, done.stderr
    assert "seeds was skipped: its goal is one of a gpu, and jax runs on cpu" in done.stdout
    text = (tmp_path / "new" / "benchmark.md").read_text()
    lines = (tmp_path / "new" / "benchmark.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    with_torch = importlib.util.find_spec("torch") is not None
    compared = [OURS, THEIRS] if with_torch else []
    assert [record["side"] for record in records] == [*compared, OURS, OURS]
    assert ("PyTorch is not installed: pip install .[torch]" in text) == (not with_torch)
    assert "| optimizer state |" in text
    for record in records:
        assert record["seconds"] > record["train_seconds"] > 0
        assert record["forward_flops"] > 0
    compared = records[: len(compared)]
    assert {r["train_examples"] for r in compared} <= {41}
    assert {r["epochs"] for r in compared} <= {10}
    assert len({r["forward_flops"] for r in compared}) <= 1


def test_a_row_that_fails_is_told_and_the_others_go_on(flags, tmp_path):
    # The test split is read at the end of a training only.
    (tmp_path / "test.csv").write_text("text,topic,mood\nthe film,unheard-of,neu\n")
    flags = [*flags, f"--test-file={tmp_path / 'test.csv'}"]
    done = benchmark(tmp_path / "new", flags, "optimizer_state", "seeds")
    assert done.returncode == 1, done.stderr
    text = (tmp_path / "new" / "benchmark.md").read_text()
    assert "`optimizer_state` failed:" in text
    assert "unheard-of" in text
    assert "`seeds` was skipped" in text
    assert (tmp_path / "new" / "benchmark.jsonl").read_text() == ""


def test_mistakes_are_told_before_anything_is_measured(flags, tmp_path):
    for wrong in (["--rows", "top_3"], ["--rows", "top_2", "--backbone=/no/such"]):
        done = benchmark(tmp_path / "x", flags, *wrong[1:])
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "x").exists()
