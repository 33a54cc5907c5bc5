"""The lock of what processes share, whose file goes with it."""

import subprocess
import sys
from pathlib import Path

import pytest

from mtl_jax.errors import UserError
from mtl_jax.locks import exclusive

TURNS = """
import os
import sys
from pathlib import Path
from mtl_jax.locks import exclusive

path = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(400):
    with exclusive(path):
        # Two that held it at once would find the file there, or lose a turn.
        os.close(os.open(path.with_name("held"), os.O_CREAT | os.O_EXCL))
        path.write_text(str(int(path.read_text()) + 1))
        os.unlink(path.with_name("held"))
"""


def listing(folder):
    return [path.name for path in folder.iterdir()]


def test_the_lock_of_many_processes_is_one_though_its_file_goes_with_each(tmp_path):
    path = tmp_path / "sum"
    path.write_text("0")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TURNS, str(path)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0] * 4
    assert path.read_text() == "1600"
    assert listing(tmp_path) == ["sum"]


def test_a_lock_that_another_holds_can_be_passed_by(tmp_path):
    with exclusive(tmp_path / "a"), exclusive(tmp_path / "a", wait=False) as held:
        assert not held
        assert listing(tmp_path) == [".a.lock"]
    with exclusive(tmp_path / "a", wait=False) as held:
        assert held
    assert listing(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told_in_the_words_of_its_owner(tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "a"
    with pytest.raises(UserError, match=r"cannot write to .*/file \(.*set MTL_JAX_CACHE"):  # noqa: SIM117
        with exclusive(path):
            raise AssertionError

    def trouble(folder, error):
        return UserError(f"no {folder.name}: {error.strerror}")

    with pytest.raises(UserError, match=r"^no file: "):  # noqa: SIM117
        with exclusive(path, trouble):
            raise AssertionError
