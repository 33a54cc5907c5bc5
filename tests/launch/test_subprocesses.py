"""Several processes that are started, told to stop and waited for together, as real processes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def driver(*words):
    """A process that calls ``run_together``, and may be sent signals."""
    with subprocess.Popen(
        [sys.executable, "-c", _DRIVE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def driven(*words):
    """What such a process has said, when it has ended."""
    with driver(*words) as process:
        return process.communicate()


_DRIVE = """
import os, sys
from mtl_jax.launch.subprocesses import run_together
codes = sys.argv[2:]
commands = [[sys.executable, "-S", "-c", code] for code in codes]
environments = [{**os.environ, "INDEX": str(index)} for index in range(len(codes))]
ended = run_together(commands, environments, float(sys.argv[1]))
print(ended.status, sorted(ended.statuses), ended.told)
"""


def test_of_several_processes_the_first_speaks_for_itself():
    says = "import os, sys; print('out', os.environ['INDEX']); print('err', file=sys.stderr)"
    out, err = driven("9", says, says, says + "; sys.stdout.write('no end')")
    assert out == "out 0\n0 [0, 0, 0] False\n"
    assert sorted(err.splitlines()) == [
        *("[1] err", "[1] out 1", "[2] err", "[2] no end", "[2] out 2", "err"),
    ]


def test_when_one_fails_the_others_are_ended(tmp_path):
    waits, fails = "import signal; signal.pause()", "import sys; sys.exit(3)"
    out, _ = driven("60", fails, waits)
    assert out == "3 [3, 143] False\n"
    # One that does not listen is killed in the end; the other fails when it has begun not to.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    out, _ = driven(
        *("0.1", f"open({str(pipe)!r}).read(); {fails}"),
        f"{deaf} open({str(pipe)!r}, 'w').close(); signal.pause()",
    )
    assert out == "3 [3, 137] False\n"


# Says that it is there; has 75 at the first SIGTERM, but 1 where a second one comes within so
# many seconds after its fellow, whose process id it is told, has ended.
_SAVES = """
import os, signal, sys
def fellow_is_there():
    try: os.kill(int(fellow), 0)
    except ProcessLookupError: return False
    return True
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
fellow = open(PIPE).read() if WAITS else 0
if not WAITS: open(PIPE, "w").write(str(os.getpid()))
sys.stderr.write("there\\n")
signal.sigwait([signal.SIGTERM])
while WAITS and fellow_is_there(): pass
sys.exit(1 if WAITS and signal.sigtimedwait([signal.SIGTERM], 0.5) else 75)
"""


@pytest.mark.parametrize("whom", ["all", "one"])
def test_those_who_save_are_told_once(whom, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    first, second = (
        _SAVES.replace("PIPE", repr(str(pipe))).replace("WAITS", str(waits))
        for waits in (False, True)
    )
    with driver("60", first, second) as process:
        assert process.stderr is not None
        there = [process.stderr.readline() for _ in range(2)]
        # A scheduler may tell the processes, and not who has started them.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for told in [process.pid] if whom == "all" else map(int, children):
            os.kill(told, signal.SIGTERM)
        out, _ = process.communicate()
    assert sorted(there) == ["[1] there\n", "there\n"]
    assert out == f"75 [75, 75] {whom == 'all'}\n"


def test_one_that_had_not_begun_to_heed_it_can_be_gone_on_with_too():
    with driver(
        "60", "import sys; sys.stderr.write('there\\n'); import signal; signal.pause()"
    ) as (process):
        assert process.stderr is not None
        assert process.stderr.readline() == "there\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate()
    assert out == "75 [143] True\n"


def test_where_the_end_of_the_terminal_is_ignored_it_stays_so(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    first, second = (
        _SAVES.replace("PIPE", repr(str(pipe))).replace("WAITS", str(waits))
        for waits in (False, True)
    )
    # As nohup does.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        started = driver("60", first, second)
        process = started.__enter__()
    finally:
        signal.signal(signal.SIGHUP, before)
    with contextlib.ExitStack() as stack:
        stack.push(started)
        assert process.stderr is not None
        assert sorted(process.stderr.readline() for _ in range(2)) == ["[1] there\n", "there\n"]
        # The second one would be told twice.
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate()
    assert out == "75 [75, 75] True\n"


_SAVES_SILENTLY = """
import os, pathlib, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.write(1, b"there\\n")
signal.sigwait([signal.SIGTERM])
for _ in range(9 if SPEAKS else 0): print("saving", flush=True)
pathlib.Path(FILE).write_text("saved")
sys.exit(75)
"""


@pytest.mark.skipif(shutil.which("setsid") is None, reason="setsid is not installed")
def test_when_the_terminal_is_gone_they_save(tmp_path):
    files = [tmp_path / "0", tmp_path / "1"]
    codes = [
        _SAVES_SILENTLY.replace("FILE", repr(str(file))).replace("SPEAKS", str(number))
        for number, file in enumerate(files)
    ]
    master, terminal = os.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-c", _DRIVE, "60", *codes],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        os.close(terminal)
        said = b""
        # Whole lines: half of one may come first, and its writer is not to fail at the rest.
        while said.count(b"there\r\n") < 2:
            said += os.read(master, 1000)
        os.close(master)
        process.wait()
    assert [file.read_text() for file in files] == ["saved", "saved"]
