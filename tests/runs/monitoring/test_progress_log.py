"""What a heartbeat says, on a clock of the test's own; and in a real run without a terminal."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtl_jax.core import console
from mtl_jax.core.console import duration
from mtl_jax.runs.monitoring.progress_log import Heartbeat, memory_in_use
from tests import forked

LOSSES = {"classifier": 0.41234, "sentiment": 0.7329}
MEMORY = r"\d+\.\d GiB(?:, \d+\.\d GiB on the device)?"


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def heartbeat(clock, lines):
    def make(every=60.0, total=1998, phases=1, may_end_early=False):
        return Heartbeat(every, total, phases, may_end_early, clock, lines.append)

    return make


def test_a_line_comes_each_time_that_so_many_seconds_have_passed(heartbeat, clock, lines):
    beat = heartbeat()
    seen = []
    for second in range(200):
        clock.now = 100.0 + second
        beat(second + 1, 0, LOSSES, 78.4)
        seen.append(len(lines))
    assert [seen.index(count) for count in (1, 2, 3)] == [60, 120, 180]


def test_a_line_tells_where_the_run_is(heartbeat, clock, lines):
    beat = heartbeat()
    beat(101, 0, LOSSES, 78.4)
    clock.now += 60
    beat(120, 0, LOSSES, 78.4)
    words = rf"step 120 of 1,998, classifier 0\.412, sentiment 0\.733, 78 examples/s, {MEMORY}, "
    # 1,878 steps at 19 a minute.
    assert re.fullmatch(words + r"about 1 h 39 min left", lines[0])


def test_the_rate_is_that_since_the_first_step_whatever_was_between(heartbeat, clock, lines):
    beat = heartbeat(total=40)
    beat(10, 0, LOSSES, 1.0)
    clock.now += 10
    beat(20, 0, LOSSES, 1.0)
    clock.now += 90  # a measurement on validation
    beat(30, 0, LOSSES, 1.0)
    assert lines[0].endswith("about 50 s left")


def test_a_run_that_was_resumed_counts_its_own_steps(heartbeat, clock, lines):
    beat = heartbeat(total=1000)
    beat(0, 0, {}, 0.0)  # before the first loss is known
    clock.now += 1000
    beat(900, 0, LOSSES, 1.0)
    clock.now += 60
    beat(960, 0, LOSSES, 1.0)
    assert [line.split(", ")[-1] for line in lines] == ["about 40 s left"]


def test_phases_are_named_and_an_early_end_is_reckoned_with(heartbeat, clock, lines):
    beat = heartbeat(total=12, phases=5, may_end_early=True)
    beat(1, 0, LOSSES, 1.0)
    clock.now += 60
    beat(7, 1, LOSSES, 1.0)
    assert lines[0].startswith("step 7 of 12 (phase 2 of 5), classifier")
    assert lines[0].endswith("at most 50 s left")


def test_zero_seconds_are_no_heartbeat(heartbeat, clock, lines):
    beat = heartbeat(every=0.0)
    for _ in range(3):
        clock.now += 1000
        beat(1, 0, LOSSES, 1.0)
    assert lines == []


def test_memory_is_what_the_kernel_says():
    with Path("/proc/self/status").open() as file:
        [resident] = [int(line.split()[1]) for line in file if line.startswith("VmRSS")]
    assert float(memory_in_use()[0].split()[0]) == pytest.approx(resident / 2**20, abs=0.1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.21, "3.2 s"), (59.4, "59 s"), (59.7, "1 min"), (3570, "1 h 0 min"), (5400, "1 h 30 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def train(flags, folder, stderr, start: Any = subprocess.Popen):
    command = [sys.executable, "-m", "mtl_jax", "train", *flags, f"--workdir={folder}"]
    command += ["--scenario=none_frozen", "--heartbeat=1e-9"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    return start(command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment)


def test_a_run_without_a_terminal_beats(small_flags, tmp_path):
    with train(small_flags, tmp_path / "run", subprocess.PIPE, forked.Popen) as process:
        assert process.stderr is not None
        said = process.stderr.read().decode().splitlines()
    assert process.returncode == 0
    found = [re.match(r"step (\d+) of 12, classifier \d", line) for line in said]
    # The loss of a step is known when the next one has been sent off, but for that of a step
    # that is logged; the first one starts the clock.
    assert [int(beat[1]) for beat in found if beat] == [2, 3, 4, 5, 6, 7, 8, 10, 10, 11]


@pytest.mark.parametrize("size", ["0", "-1", "²", "9" * 5000, "1000000000", ""])
def test_a_bar_shows_its_title_as_it_stands(size, monkeypatch):
    """In a terminal of any size that it may say it has."""
    main, side = pty.openpty()
    for name in ("COLUMNS", "LINES"):
        monkeypatch.setenv(name, size)
    monkeypatch.setenv("TERM", "xterm")
    title = "[/b] :x: {0}"
    with os.fdopen(side, "w", encoding="utf-8") as stream:
        terminal = console.Terminal(file=stream, soft_wrap=True)
        monkeypatch.setattr(console, "_console", terminal)
        with console.training_bar(title, 10, 0) as update:
            update(5, {"[/i]": 0.5}, 1.0)
            console.say("a line [/b] of a path")
    said = ""
    while part := _read(main):
        said += part.decode()
    os.close(main)
    assert title in said
    assert "[/i] 0.500" in said
    assert "a line [/b] of a path" in said


def test_a_run_with_a_terminal_draws_a_bar_with_the_time_left(small_flags, tmp_path):
    main, side = pty.openpty()
    process = train(small_flags, tmp_path / "run", side)
    os.close(side)
    said = b""
    while part := _read(main):
        said += part
    os.close(main)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode())
    assert not re.search(r"step \d+ of 12", text)
    assert re.search(r"none_frozen, seed 0 \S+\s+12/12 +classifier \d.* 0:00:00", text)


def _read(descriptor):
    try:
        return os.read(descriptor, 2**16)
    except OSError:  # the other side is closed
        return b""
