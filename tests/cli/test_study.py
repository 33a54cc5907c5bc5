"""``mtl-jax study``: what it lists, how it calls a study, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from mtl_jax.cli.commands import run

ROOT = Path(__file__).parents[2]
OWN_STUDY = ROOT / "experiments" / "examples" / "own_study.py"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_built_in_ones_are_listed(words, capsys):
    assert run(["study", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "usage: mtl-jax study NAME|module|FILE.py [flags]" in out
    lines = [line.split("  ") for line in out.splitlines() if line.startswith("  ")]
    assert [line[1] for line in lines] == [
        *("backbones", "freezing", "heads", "quality", "scarce_task", "unfreezing")
    ]
    assert all(line[-1].endswith((".", "?")) for line in lines)


def test_help_is_that_of_the_study_as_it_was_called_and_needs_no_jax():
    code = (
        "import sys; from mtl_jax.cli.commands import run\n"
        "statuses = [run(['study', word, '--help']) for word in sys.argv[1:]]\n"
        "print(statuses, [m for m in ('jax', 'numpy', 'rich', 'transformers') if m in sys.modules])"
    )
    words = ["freezing", "heads", str(OWN_STUDY)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    for word in words:
        assert f"usage: mtl-jax study {word} [-h]" in done.stdout
    assert done.stdout.count("--workdir STR") == 3
    assert done.stdout.splitlines()[-1] == "[0, 0, 0] []"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["unfreezin"], "unknown study 'unfreezin': did you mean unfreezing?"),
        (["judgement"], "unknown study 'judgement': did you mean judge?"),
        (["gone.py", "--help"], "study gone.py is not there"),
        (["--workdir=x", "freezing"], "--workdir=x stands where the name of the study should be"),
        (["freezing", "--workdir=x", "--arms=top_1", "--seed=1"], "--seed"),
        (["heads", "--workdir=x", "--seeds=-1"], "--seeds -1 must not be negative"),
        (["heads"], "--workdir"),
    ],
)
def test_mistakes_are_one_line(words, said, capsys):
    assert run(["study", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert said in line
