"""The locks of what processes share, whose files stay."""

import errno
import fcntl
import io
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_jax.core import file_lock
from mtl_jax.core.errors import UserError
from mtl_jax.core.file_lock import exclusive, hold, release
from mtl_jax.runs.workdir import Workdir

TURNS = """
import os
import sys
from pathlib import Path
from mtl_jax.core.file_lock import exclusive

path = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    with exclusive(path):
        # Two that held it at once would find the file there, or lose a turn.
        os.close(os.open(path.with_name("held"), os.O_CREAT | os.O_EXCL))
        path.write_text(str(int(path.read_text()) + 1))
        os.unlink(path.with_name("held"))
"""


def listing(folder):
    return [path.name for path in folder.iterdir()]


def test_the_lock_of_many_processes_is_one_file_for_ever(tmp_path):
    path = tmp_path / "sum"
    path.write_text("0")
    with exclusive(path):
        # Were it removed, a file server could show it to some who wait, and a new one to others.
        first = (tmp_path / ".sum.lock").stat()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TURNS, str(path)],
            cwd=Path(__file__).parents[2],
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
    assert path.read_text() == "400"
    assert sorted(listing(tmp_path)) == [".sum.lock", "sum"]
    assert (tmp_path / ".sum.lock").stat().st_ino == first.st_ino


def test_a_lock_that_another_holds_can_be_passed_by(tmp_path):
    with exclusive(tmp_path / "a"), exclusive(tmp_path / "a", wait=False) as held:
        assert not held
        assert listing(tmp_path) == [".a.lock"]
    with exclusive(tmp_path / "a", wait=False) as held:
        assert held
    assert listing(tmp_path) == [".a.lock"]


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


class LetsGo(io.StringIO):
    """Standard error, on which the first word that is said ends what holds a lock."""

    def __init__(self, holder):
        super().__init__()
        self.holder = holder

    def write(self, text):
        self.holder.close()
        return super().write(text)


@pytest.fixture
def at_once(monkeypatch):
    """The waiting is told without delay."""
    monkeypatch.setattr(file_lock, "_FIRST_WORD_AFTER", 0.0)
    monkeypatch.setattr(file_lock, "_WORD_EVERY", 0.0)


def held_here(lock, *, shared=False):
    """The file of a lock of a folder that this process has."""
    file = hold(lock, shared=shared)
    assert file is not None
    return file


def held_elsewhere(lock, machine, kind=fcntl.LOCK_EX):
    """A file that holds a lock as another machine does, or did that is gone."""
    lock.parent.mkdir(exist_ok=True)
    file = lock.open("a+b")
    fcntl.flock(file, kind)
    file.truncate(0)
    file.write(machine)
    file.flush()
    return file


@pytest.mark.parametrize("machine", [b"", b"another", b"several machines"])
def test_a_run_waits_for_a_machine_that_may_be_gone(machine, at_once, tmp_path, monkeypatch):
    run = tmp_path / "run"
    said = LetsGo(held_elsewhere(run / ".lock", machine))
    monkeypatch.setattr(sys, "stderr", said)
    folder = Workdir(run)
    folder.claim({})
    folder.close()
    line, *_ = said.getvalue().splitlines()
    assert line == (
        f"waiting for a process that works in {run}, on a machine that may be gone, since 0 s of "
        "at most 120"
    )
    # The next one on this machine knows that there is nothing to wait for.
    with held_here(run / ".lock"):
        again = Workdir(run)
        with pytest.raises(UserError, match="another process is working in"):
            again.claim({})


def test_it_waits_no_longer_than_that(at_once, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(file_lock, "LEASE_SECONDS", 0.02)
    folder = Workdir(tmp_path / "run")
    with (
        held_elsewhere(tmp_path / "run" / ".lock", b"another"),
        pytest.raises(UserError, match=r"another process is working in .*: wait for it"),
    ):
        folder.claim({})
    assert capsys.readouterr().err.count("waiting for a process that works in") >= 1


def test_of_those_who_share_a_lock_all_are_to_be_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(file_lock, "LEASE_SECONDS", 0.0)
    lock = tmp_path / ".lock"
    with held_here(lock, shared=True), held_here(lock, shared=True):
        here = lock.read_bytes()
        assert here
        assert hold(lock, shared=False) is None
    with held_elsewhere(lock, b"another", fcntl.LOCK_SH), held_here(lock, shared=True):
        assert lock.read_bytes() == b"several machines"
    with held_here(lock):
        assert lock.read_bytes() == here


def test_that_a_lock_of_the_cache_is_waited_for_is_told(at_once, tmp_path, monkeypatch):
    said = LetsGo(held_elsewhere(tmp_path / ".a.lock", b""))
    monkeypatch.setattr(sys, "stderr", said)
    with exclusive(tmp_path / "a") as held:
        assert held
    assert said.getvalue().startswith(
        f"waiting for another process that makes {tmp_path / 'a'} since 0 s\n"
    )


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(number, tmp_path, monkeypatch):
    def flock(_file, _kind):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    words = rf"^the file system of {tmp_path} has no locks \(no locks\), .*: name a folder on"
    with pytest.raises(UserError, match=words):  # noqa: SIM117
        with exclusive(tmp_path / "a"):
            raise AssertionError
    with pytest.raises(UserError, match=words):
        Workdir(tmp_path).claim({})


def test_a_disk_that_fails_as_a_lock_ends_hides_nothing():
    lock = Path("/dev/full").open("wb")  # noqa: SIM115
    lock.write(b"what is written when the file is closed")
    release(lock)
    assert lock.closed
