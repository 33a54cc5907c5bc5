"""What the tests of launching share: dry runs, programs that write down what they are given."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_jax.core.command_line import guarded
from mtl_jax.launch.__main__ import main

ROOT = Path(__file__).parents[1]
# What a shell could make something else of.
AWKWARD = 'it\'s "so" $HOME `id` \\n * \n #!'


def shown(capsys, *words):
    """What a dry run prints."""
    capsys.readouterr()
    assert guarded(main, words) == 0
    return capsys.readouterr().out


def shellcheck(*texts):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    for text in texts:
        done = subprocess.run(
            ["shellcheck", "-"], input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def recorder(file, before=""):
    """Makes a program that adds its arguments, as a JSON line, to a file beside it."""
    file.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n{before}\n"
        f"with pathlib.Path({str(file) + '.jsonl'!r}).open('a') as record:\n"
        "    print(json.dumps(sys.argv[1:]), file=record)\n"
    )
    file.chmod(0o755)
    return file


def recorded(file):
    lines = file.with_name(f"{file.name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
