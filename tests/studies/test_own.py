"""A study of one's own, from a file: as a script, and as the launchers run it."""

import re
import sys
from pathlib import Path

from mtl_jax.core.json_files import read_lines
from tests import forked

ROOT = Path(__file__).parents[2]
OWN_STUDY = "experiments/examples/own_study.py"
QUESTION = "Does a warm-up help where the top two layers train?"
ARMS = ["no_warmup", "warmup", "long_warmup"]


def call(*words):
    done = forked.run(
        [sys.executable, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        executable=forked.interpreter(),
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_example_runs_as_a_script_and_is_gone_on_with_by_the_launcher(flags, tmp_path):
    folder = tmp_path / "study"
    more = [*flags, "--epochs=1", "--seeds=0", f"--workdir={folder}"]

    def command():
        return re.findall(r"(?m)^.*own_study\.py.*$", (folder / "report.md").read_text())

    call(OWN_STUDY, *more)
    results = read_lines(folder / "results.jsonl")
    assert [line["arm"] for line in results] == ARMS
    (called,) = command()
    assert "python own_study.py --backbone=" in called
    assert (folder / "report.md").read_text().startswith(f"# {QUESTION}\n")
    launched = call("-m", "mtl_jax.launch", "local", "--", "experiment", OWN_STUDY, *more)
    assert "3 arms, this call took " in launched.stderr
    assert read_lines(folder / "results.jsonl") == results
    (called,) = command()
    assert f"mtl-jax study {OWN_STUDY} --backbone=" in called
