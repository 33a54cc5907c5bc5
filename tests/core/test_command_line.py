"""What every command line does alike: one line for what is refused, whatever the streams are."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtl_jax.cli.commands import run
from mtl_jax.cli.flags import Command
from mtl_jax.core.command_line import guarded, one_line, parse
from mtl_jax.core.errors import Preempted, UserError, cannot_read, cannot_write, first_line
from mtl_jax.studies.settings import StudySettings
from tests import forked
from tests.conftest import run_without_home

REFUSALS = [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b"), "a/b can't be written (No space"),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "a file can't be written (Disk quota"),
    (OSError(errno.EFBIG, os.strerror(errno.EFBIG), "x"), "ulimit -f"),
    (OSError(errno.EROFS, os.strerror(errno.EROFS), "x"), "x can't be written (Read-only"),
    (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x"), "ulimit -n"),
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x"), "give access to it"),
    (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "x"), "shorter name"),
    (OSError(errno.ENOENT, os.strerror(errno.ENOENT), b"\xff"), "can't be used (No such file"),
    (OSError("odd"), "a file can't be used (odd): "),
    (ValueError('Error opening "/d/e": [OS error 28: ENOSPC]'), "/d/e can't be written (No space"),
    (RuntimeError("Unable to initialize backend 'foo': no"), "JAX_PLATFORMS"),
    (RuntimeError("Could not determine home directory."), "set HOME"),
]


@pytest.mark.parametrize(("error", "words"), REFUSALS)
def test_what_the_system_refuses_is_one_line(error, words, capsys):
    def main(argv):
        raise error

    assert guarded(main, []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_gpu_that_is_not_there_is_told():
    """JAX asserts here, without a word, that it has found one."""
    program = "import sys, jax; from mtl_jax.core.command_line import guarded\n"
    ended = subprocess.run(
        [sys.executable, "-c", f"{program}sys.exit(guarded(lambda argv: jax.devices(), []))"],
        env={**os.environ, "JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: JAX can't use the devices that it was ")
    assert "Traceback" not in ended.stderr


def test_the_cause_is_told_of_an_error_that_names_one(capsys):
    def main(argv):
        try:
            os.stat("/nowhere/at/all")  # noqa: PTH116
        except OSError as error:
            raise ValueError("a library's own words") from error

    assert guarded(main, []) == 2
    assert "/nowhere/at/all can't be used (No such file" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), RuntimeError("x")])
def test_a_defect_is_not_hidden(error):
    def main(argv):
        try:
            os.stat("/nowhere/at/all")  # noqa: PTH116
        except OSError:
            raise error  # noqa: B904

    with pytest.raises(type(error)):
        guarded(main, [])


@pytest.mark.parametrize(
    ("number", "to_write", "to_read"),
    [
        (errno.ENAMETOOLONG, "choose a shorter name", "choose a shorter name"),
        (errno.ENOSPC, "make room, of bytes and of files", "make room"),
        (errno.ENOENT, "put back the folder that it is in", "correct the path"),
        (errno.EACCES, "give access to it", "give read access to it"),
        (errno.EMFILE, "ulimit -n", "ulimit -n"),
    ],
)
def test_the_remedy_is_for_what_the_system_refused(number, to_write, to_read):
    error = OSError(number, os.strerror(number))
    assert to_write in str(cannot_write(Path("x"), error)).partition("): ")[2]
    assert to_read in str(cannot_read(Path("x"), error)).rpartition(": ")[2]


def test_a_current_folder_that_is_gone_is_told(tmp_path):
    # In a process of its own: an import that fails midway would be met by other tests.
    program = (
        "import os, pathlib\nfrom mtl_jax.cli.commands import run\n"
        "pathlib.Path.cwd().rmdir()\n"
        "print(run(['check', '--train-file=x.csv', '--label-columns=mood=mood']))"
    )
    gone = tmp_path / "gone"
    gone.mkdir()
    done = forked.run([sys.executable, "-c", program], cwd=gone, capture_output=True, text=True)
    assert done.stdout == "2\n"
    assert "the current folder is gone: change to" in done.stderr


def test_a_library_that_finds_no_room_is_no_defect(capsys):
    def main(argv):
        raise ImportError("libx.so: failed to map segment from shared object")

    assert guarded(main, []) == 1
    assert "the machine has not enough memory (libx.so: failed to map" in capsys.readouterr().err


def test_a_long_line_keeps_its_beginning_and_its_end(capsys):
    def main(argv):
        raise UserError(f"the thing {'x' * 717_000}: the remedy")

    assert guarded(main, []) == 2
    line = capsys.readouterr().err
    assert len(line) < 5000
    assert line.startswith("error: the thing xx")
    assert line.endswith("xx: the remedy\n")
    path = "/runs/" + "a folder/" * 400
    assert first_line(OSError(f"\n{path} is gone: why\nmore")).endswith("is gone: why")
    assert one_line(ValueError(f"{path} is gone: why")).endswith("is gone: why")


@pytest.mark.parametrize("columns", ["0", "1", "-1", "x", "100000"])
def test_help_and_errors_have_a_width_of_their_own(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    started = time.process_time()
    assert run(["train", "--help"]) == 0
    page = capsys.readouterr().out
    assert "--backbone-learning-rate" in page
    assert 40 < max(map(len, page.splitlines())) <= 250
    assert run(["train", "--workdir", "x", "--epochs", "a----b"]) == 2
    told = capsys.readouterr().err
    words = "--epochs a----b is not a whole number or None: see python -m mtl_jax train --help"
    assert told == f"error: {words}\n"
    assert time.process_time() - started < 10
    assert os.environ["COLUMNS"] == columns


def test_a_wrong_flag_is_answered_with_the_whole_command():
    with pytest.raises(UserError, match=r"see python -m mtl_jax train --help$"):
        parse(Command, ["train"], "python -m mtl_jax", "")


def test_names_that_are_no_utf8_are_refused(capsys):
    assert run(["train", "--workdir", os.fsdecode(b"runs/\xff\xfe")]) == 2
    assert "'runs/\\\\xff\\\\xfe' is not UTF-8 text: rename" in capsys.readouterr().err


STREAMS = [
    ("--help > /dev/full", 2, "error: standard output can't be written (No space left"),
    ("--help >&-", 2, "error: standard output is closed: "),
    ("evaluate --workdir x >&-", 2, "error: standard output is closed: "),
    ("--help 2>&-", 0, ""),
    ("nonsense 2> /dev/full", 2, ""),
]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_streams_that_can_not_be_written(unbuffered):
    """All at once: an interpreter takes a while to start."""
    started = [
        subprocess.Popen(
            ["sh", "-c", f"exec {sys.executable} -m mtl_jax {words}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
        for words, _, _ in STREAMS
    ]
    for process, (_, status, said) in zip(started, STREAMS, strict=True):
        _, errors = process.communicate()
        assert process.returncode == status, errors
        assert errors.startswith(said)
        assert len(errors.splitlines()) == bool(said)


def test_a_user_without_a_home():
    program = (
        "from mtl_jax.core.downloads import cache_dir\nfrom mtl_jax.core.command_line "
        "import guarded\n"
        "os.setuid(54321)\nprint(guarded(lambda argv: cache_dir(), []))"
    )
    done = run_without_home(program)
    assert done.stdout == "2\n"
    assert done.stderr.startswith("error: there is no home folder for downloaded files: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_negative_seed_is_refused(capsys):
    assert run(["train", "--workdir=x", "--seed=-1"]) == 2
    assert "--seed -1 must be between 0 and" in capsys.readouterr().err


def test_negative_seeds_of_a_study_are_refused():
    with pytest.raises(UserError, match=r"--seeds -1 must be between 0 and"):
        StudySettings(workdir="x", seeds=(0, -1))


def test_an_end_by_sigterm_stays_one_whatever_an_import_makes_of_it(capsys):
    def main(argv):
        try:
            raise Preempted("ended by SIGTERM")
        except Preempted as stop:
            raise ValueError("no valid format") from stop

    assert guarded(main, []) == 75
    assert capsys.readouterr().err == "ended by SIGTERM\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_answers_to_a_pipe_outlive_a_stop(unbuffered):
    """Interrupted, a write to a pipe ends early: what is left of it has to follow."""
    program = (
        "from mtl_jax.core.command_line import guarded\n"
        "raise SystemExit(guarded(lambda argv: print('a' * 10_000_000), []))"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        # It is writing: a pipe has room for a small part.
        first = process.stdout.read(1)
        for name in (signal.SIGSTOP, signal.SIGCONT):
            process.send_signal(name)
        assert first + process.stdout.read() == b"a" * 10_000_000 + b"\n"
    assert process.returncode == 0
