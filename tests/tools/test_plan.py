"""What ``plan`` foretells, against what runs do."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.console import Terminal
from mtl_jax.core.errors import UserError
from mtl_jax.runs.loop import train
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.tools.cost import EvaluationBatches, _flops
from mtl_jax.tools.plan import Estimate, plan, tables, warnings_of
from mtl_jax.training.inputs import Inputs
from tests import conftest, forked

CACHED = ("all_frozen", "backbone_frozen", "top_1", "none_frozen")


@pytest.fixture(scope="module")
def costs(shared_settings):
    """Costs by scenario, and with ``uncached`` before its name without kept activations."""
    cached = plan(TrainConfig(**shared_settings, workdir=""), CACHED, 0)
    settings = TrainConfig(**shared_settings, workdir="", prefix_cache=False)
    uncached = plan(settings, ("backbone_frozen", "top_1"), 0)
    return {e.scenario: e.cost for e in cached} | {
        f"uncached {e.scenario}": e.cost for e in uncached
    }


@pytest.fixture
def make_run(settings, tmp_path):
    """Makes a run of the tiny BERT that differs in some settings."""

    def make(scenario="backbone_frozen", **changes):
        config = TrainConfig(**settings | changes, workdir="", scenario=scenario)
        return PhaseRun(config, Inputs(config))

    return make


@pytest.mark.parametrize("scenario", CACHED)
def test_what_is_counted_is_what_a_run_leaves(scenario, settings, costs, tmp_path):
    """In its certificate, and in the files of its activations, of all three splits."""
    folder = tmp_path / "kept"
    settings |= {"cache_folder": str(folder)}
    config = TrainConfig(**settings, workdir=str(tmp_path / "run"), scenario=scenario)
    train(config)
    certificate = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert costs[scenario].trainable_parameters == certificate["trainable_parameters"]
    assert costs[scenario].optimizer_state_bytes == certificate["optimizer_state_bytes"]
    frozen = certificate["labels"].get("frozen", {"parameters": 0})
    assert costs[scenario].frozen_parameters == frozen["parameters"]
    sizes = [path.stat().st_size - 40 for path in folder.glob("*.states")]
    assert len(sizes) == (0 if scenario == "none_frozen" else 3)
    assert costs[scenario].cache_bytes == sum(sizes)
    # And in the arrays that a run like it finds.
    run, expected = PhaseRun(config, Inputs(config)), 0
    for name in ("train", "validation", "test"):
        texts = run.split(name).texts
        expected += sum(array.nbytes for array in (texts.states, texts.pooled) if array is not None)
    assert costs[scenario].cache_bytes == expected
    assert (costs[scenario].flops["prefix"] > 0) is (expected > 0)


def kept(folder):
    """What kinds of files the cache has: no activations, which only training computes."""
    return {path.suffix for path in folder.rglob("[!.]*") if path.is_file()}


def test_half_precision_keeps_float32_and_no_activation_is_written(settings, costs, tmp_path):
    folder = tmp_path / "kept"
    config = TrainConfig(
        **settings | {"dtype": "bfloat16", "parallel": "pmap", "cache_folder": str(folder)},
        workdir="",
    )
    (estimate,) = plan(config, ["top_1"], 0)
    assert estimate.cost is not None
    assert estimate.cost.cache_bytes == costs["top_1"].cache_bytes
    assert kept(folder) == {".tokens"}


def test_what_is_frozen_costs_no_backward(costs):
    frozen, top, whole = (
        costs[name].flops for name in ("uncached backbone_frozen", "uncached top_1", "none_frozen")
    )
    assert frozen["backward"] < top["backward"] < whole["backward"]
    assert frozen["backward"] < frozen["forward"] / 10
    assert costs["all_frozen"].flops["backward"] == 0


def test_kept_activations_spare_the_steps_their_flops(costs):
    kept, whole = costs["top_1"].flops, costs["uncached top_1"].flops
    assert kept["forward"] < whole["forward"]
    assert kept["forward"] + kept["backward"] < whole["forward"] + whole["backward"]
    assert whole["prefix"] == 0
    assert costs["backbone_frozen"].flops["forward"] < whole["forward"] / 100


def test_forward_flops_are_those_of_the_matrix_products(settings, tmp_path):
    conftest.write_checkpoint(tmp_path / "wide", conftest.WIDE)
    config = TrainConfig(
        **settings | {"backbone": str(tmp_path / "wide")}, workdir="", scenario="none_frozen"
    )
    (estimate,) = plan(config, ["none_frozen"], 0)
    run = PhaseRun(config, Inputs(config))
    layout, width = run.plan.layout, conftest.WIDE.hidden_size
    tokens = layout.rows * layout.length
    dense = 2 * tokens * (4 * width**2 + 2 * width * conftest.WIDE.intermediate_size)
    pairs = layout.rows * sum(count * length**2 for count, length in layout.blocks)
    attention = 4 * pairs * width
    pooling = 2 * tokens * layout.slots * width
    heads = 2 * layout.rows * layout.slots * width * (3 + 3)
    batch = 2 * (dense + attention) + pooling + heads
    assert estimate.cost is not None
    assert estimate.cost.flops["forward"] == pytest.approx(batch * run.plan.steps / 96, rel=0.03)
    # Each product has two in the backward pass.
    assert estimate.cost.flops["backward"] == pytest.approx(
        2 * estimate.cost.flops["forward"], rel=0.1
    )


def test_flops_of_layers_in_a_loop_are_those_of_all_of_them(shared_settings, costs):
    settings = TrainConfig(**shared_settings, workdir="", scan_layers=True)
    for estimate in plan(settings, ("top_1", "none_frozen"), 0):
        assert estimate.cost is not None
        assert estimate.cost.flops == costs[estimate.scenario].flops


def test_flops_include_what_a_fused_kernel_computes(make_run, tmp_path):
    """Which cuDNN has on its devices only: to lower it here would be an error."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain = dataclasses.replace(conftest.TINY, **still)
    run = make_run("none_frozen", backbone=str(conftest.write_checkpoint(tmp_path / "b", plain)))
    template, batches = run.compiled_step().template, EvaluationBatches(run.inputs)
    fused = dataclasses.replace(template, model=template.model.clone(fused="cudnn"))
    assert _flops(run, fused, batches) == _flops(run, template, batches)


def test_seconds_add_up_over_the_parts_that_there_are(costs):
    for name, cost in costs.items():
        parts = {part: cost.seconds[part] for part in cost.seconds if part != "total"}
        assert cost.seconds["total"] == pytest.approx(sum(parts.values()))
        assert (parts["training"] > 0) is (name != "all_frozen")
        assert (parts["prefix"] > 0) is (cost.cache_bytes > 0)
        assert parts["validation"] > 0
        assert parts["final"] > 0


@pytest.mark.parametrize(
    ("scenario", "changes", "words"),
    [
        ("all_frozen", {"epochs": 7}, "nothing is trained: --epochs 7 has no effect"),
        ("backbone_frozen", {"head_learning_rate": 0}, "--head-learning-rate 0"),
        ("top_1", {"backbone_learning_rate": 0}, "--backbone-learning-rate 0"),
        ("top_1", {"task_weights": ("classifier=0", "sentiment=0")}, "all task weights are 0"),
        (
            "top_1",
            {"task_weights": ("sentiment=0",)},
            "the sentiment head is trained with --task-weights sentiment=0",
        ),
        ("backbone_frozen", {"batch_size": 97}, "96 training texts are less than one batch"),
        (
            "top_1",
            {"cache_size": 1e-5},
            "exceed --cache-size",
        ),
    ],
)
def test_a_setting_that_can_hardly_be_meant_is_told(scenario, changes, words, make_run):
    assert any(words in warning for warning in warnings_of(make_run(scenario, **changes)))


@pytest.mark.parametrize(
    ("scenario", "changes"),
    [
        ("backbone_frozen", {}),
        ("backbone_frozen", {"backbone_learning_rate": 0, "batch_size": 96}),
        ("sentiment_frozen", {"task_weights": ("sentiment=0",)}),
        ("top_1", {"cache_size": 1}),
        ("top_1", {"cache_size": 0, "prefix_cache": False}),
    ],
)
def test_what_is_in_order_is_not_warned_of(scenario, changes, make_run):
    assert warnings_of(make_run(scenario, **changes)) == ()


def test_a_task_without_a_training_label_is_told(make_run):
    run = make_run("top_1")
    split = run.inputs.split("train")
    labels = split.examples.labels | {"sentiment": np.full(len(split.texts), -1, np.int32)}
    examples = dataclasses.replace(split.examples, labels=labels)
    texts = dataclasses.replace(split.texts, labels=labels)
    run.inputs._splits["train"] = dataclasses.replace(split, examples=examples, texts=texts)
    (warning,) = warnings_of(run)
    assert warning.startswith("no training text has a sentiment label")


def test_a_disk_without_room_is_told(make_run, tmp_path):
    room = {"cache_size": 1e9, "cache_folder": str(tmp_path / "a" / "b")}
    run = make_run("top_1", **room)
    free = shutil.disk_usage(tmp_path).free
    tokens = run.inputs.split("train").texts.tokens
    # Texts without content: as many tokens as the disk has bytes, in no memory.
    many = dataclasses.replace(tokens, ids=np.broadcast_to(np.int32(5), (free,)))
    texts = dataclasses.replace(run.inputs.split("train").texts, tokens=many)
    run.inputs._splits["train"] = dataclasses.replace(run.inputs.split("train"), texts=texts)
    assert any(f"{tmp_path / 'a' / 'b'} has" in warning for warning in warnings_of(run))
    assert kept(tmp_path / "a") == {".tokens"}


def test_scenarios_that_can_not_run_are_told_and_the_others_go_on(settings, tmp_path):
    idle = tmp_path / "idle.json"
    idle.write_text('[["layer_9/*", "frozen"], ["backbone/*", "frozen"], ["*", "head"]]')
    settings = TrainConfig(**settings, workdir="")
    off, own, fine = plan(settings, ["top_9", str(idle), "all_frozen"], 0)
    assert off.record() == {
        "scenario": "top_9",
        "warnings": ["scenario 'top_9' does not fit the backbone's 2 layers: use top_1 to top_2"],
    }
    assert own.cost is None
    assert own.warnings == (
        "rule 'layer_9/*' -> 'frozen' matches no parameter: correct the pattern or remove it",
    )
    assert fine.cost is not None
    assert [table.row_count for table in tables([off, own, fine], 10_000)] == [1]
    with pytest.raises(UserError, match=r"'top_9' does not fit .*; unknown scenario 'nne_frozen'"):
        plan(settings, ["top_9", "nne_frozen"], 0)


# Command lines of one process, each with its own output: importing JAX takes the most time.
ONE_BY_ONE = """
import json
import os
import sys
from mtl_jax.cli.commands import run

for number, arguments in enumerate(json.loads(sys.argv[1])):
    for stream, descriptor in (("out", 1), ("err", 2)):
        path = os.path.join(sys.argv[2], f"{number}.{stream}")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    status = run(["plan", *arguments])
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.path.join(sys.argv[2], f"{number}.status"), "w") as file:
        print(status, file=file)
"""

LONG_TEXTS = ["--max-length=8", "--measure-seconds=0", "--scenario", "all_frozen", "--json"]
TABLE = ["--scenario", "all_frozen", "rules.json", "nne_frozen", "--measure-seconds=0"]
JSON = ["--scenario", "backbone_frozen", "top_9", "--measure-seconds=0", "--json"]
MISTAKES = [
    (["--scenario", "top_9"], "scenario 'top_9' does not fit the backbone's 2 layers"),
    (["--scenario"], "--scenario is empty"),
    (["--measure-seconds=-1"], "--measure-seconds -1.0 must not be negative"),
    (["--train-file=nowhere.csv"], "nowhere.csv"),
    (["--workdir=x"], "--workdir"),
    ([*LONG_TEXTS, "--long-texts=refuse"], "train: 32 of 96 texts are longer than 8 tokens: "),
]


@pytest.fixture(scope="module")
def ended(flags, tmp_path_factory):
    """Status, output and errors of a command line of this module, by what it adds to ``flags``."""
    folder, outputs = (tmp_path_factory.mktemp(name) for name in ("commands", "outputs"))
    (folder / "rules.json").write_text('[["backbone/*", "frozen"], ["*", "head"]]')
    extras = [TABLE, JSON, LONG_TEXTS, *(extra for extra, _ in MISTAKES)]
    lines = json.dumps([[*flags, *extra] for extra in extras])
    forked.run(
        [sys.executable, "-c", ONE_BY_ONE, lines, str(outputs)],
        env={**os.environ, "XLA_FLAGS": "", "MTL_JAX_CACHE": str(folder / "cache")},
        cwd=folder,
        check=True,
    )
    # No command of this module has left anything but what the next one would read again.
    assert sorted(path.name for path in folder.iterdir()) == ["cache", "rules.json"]
    assert kept(folder / "cache") == {".table"}

    def of(extra):
        names = (f"{extras.index(extra)}.{kind}" for kind in ("status", "out", "err"))
        status, out, err = ((outputs / name).read_text() for name in names)
        return int(status), out, err

    return of


def test_the_command_prints_a_table_then_warnings(ended, costs):
    status, out, err = ended(TABLE)
    assert status == 0, err
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == ["all_frozen", "rules.json"]
    assert f"{costs['backbone_frozen'].frozen_parameters:,}" in rows[1]
    warnings = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert [line.split(": ")[1] for line in warnings] == ["all_frozen", "nne_frozen"]
    assert "did you mean none_frozen?" in warnings[1]


def test_json_has_a_line_for_each_and_the_numbers_of_the_function(ended, costs):
    status, out, err = ended(JSON)
    assert status == 0, err
    fine, off = [json.loads(line) for line in out.splitlines()]
    expected = dataclasses.asdict(costs["backbone_frozen"])
    assert expected.keys() | {"scenario", "warnings"} == fine.keys()
    for name in expected.keys() - {"seconds"}:
        assert fine[name] == expected[name]
    assert fine["warnings"] == []
    assert list(off) == ["scenario", "warnings"]


def test_texts_that_are_cut_are_counted(ended):
    status, _, err = ended(LONG_TEXTS)
    assert status == 0
    said = [line for line in err.splitlines() if "were cut" in line]
    counts = {"train": "32 of 96", "validation": "11 of 32", "test": "12 of 32"}
    assert said == [f"{name}: {n} texts were cut to 8 tokens" for name, n in counts.items()]


@pytest.mark.parametrize(("extra", "words"), MISTAKES)
def test_a_mistake_is_one_line_and_status_2(extra, words, ended):
    status, out, err = ended(extra)
    assert status == 2
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert words in err.splitlines()[-1]


def test_help_needs_no_jax():
    code = (
        "import sys\nfrom mtl_jax.cli.commands import run\n"
        "try: run(['plan', '--help'])\n"
        "finally: print({'jax', 'numpy', 'pyarrow', 'rich', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert "--measure-seconds" in done.stdout


@pytest.mark.parametrize("width", [10, 40, 60, 80, 120, 300])
def test_every_row_has_its_name_and_every_number_is_there_at_any_width(width, costs):
    cost = costs["top_1"]
    names = ["backbone_frozen", "[/b] rules.json", "a/long/path/" * 8 + ":x:.json"]
    file = io.StringIO()
    terminal = Terminal(file=file, width=width, force_terminal=True, color_system=None)
    drawn = tables([Estimate(name, cost, ()) for name in names], terminal.width)
    terminal.print(*drawn, sep="\n")
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= max(width, 40)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    first = "".join(row[0] for row in cells)
    for name in names:
        assert first.count(name.replace(" ", "")) + first.count(name) >= len(drawn)
    numbers = {cell for row in cells for cell in row[1:]}
    assert {f"{cost.trainable_parameters:,}", f"{cost.frozen_parameters:,}"} <= numbers
