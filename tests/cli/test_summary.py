"""What a terminal is shown: tables of any number of tasks, and the next commands."""

import os
import pty
import subprocess
import sys

import pytest

import mtl_jax
from mtl_jax.cli.summary import metrics_tables
from mtl_jax.core.console import Terminal
from tests import forked


def shown(*tables, width=80):
    terminal = Terminal(width=width, color_system=None)
    with terminal.capture() as captured:
        terminal.print(*tables)
    return captured.get()


def of_task(accuracy, f1, **more):
    known = {"accuracy": accuracy, "macro_f1": f1, "examples": 1200, "loss": 0.5}
    return {**known, "weighted_f1_by_source": {}, **more}


@pytest.mark.parametrize("width", [80, 60])
def test_a_row_for_each_task_whose_name_is_never_dropped(width):
    names = ["topic", "a_task_with_a_rather_long_name", "mood"]
    metrics = dict.fromkeys(names, of_task(0.75, 0.5, kappa=0.25))
    text = shown(*metrics_tables("validation", metrics, metrics), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    assert (
        "".join(names[1].split()) in text.replace("\n", "").replace(" ", "") or names[1][:8] in text
    )
    assert text.count("0.750") == 3
    assert text.count("0.250") == 3


def test_a_task_without_labels_has_no_number():
    text = shown(*metrics_tables("test", {"topic": of_task(None, None)}))
    assert " - " in text
    assert "0.0" not in text


def test_the_version_is_told():
    done = subprocess.run(
        [sys.executable, "-m", "mtl_jax", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"mtl_jax {mtl_jax.__version__}\n"


def test_a_terminal_has_a_table_and_the_next_commands_and_a_pipe_has_json(flags, tmp_path):
    command = [sys.executable, "-m", "mtl_jax", "train", f"--workdir={tmp_path}", *flags]
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        forked.run(
            [*command, "--scenario=all_frozen"], stdout=terminal, stderr=subprocess.PIPE, check=True
        )
    with os.fdopen(ours, "rb", 0) as end:
        text = end.read(100_000).decode()
    assert "macro-F1" in text
    assert f"python -m mtl_jax evaluate --workdir {tmp_path} --split test" in text
    assert '{"' not in text
