"""Claims of arms, and what a network file system does to them."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.studies import leases
from mtl_jax.studies.leases import Claims, holder, is_here, standings
from tests.limits import largest_file

LEASE = 1.0


@pytest.fixture
def workers(tmp_path):
    """Makes workers, which are closed in the end; what each has lost."""
    made, lost = [], []

    def make(lease=LEASE, **more):
        made.append(Claims(tmp_path / "queue", lease, lost.append, **more))
        return made[-1]

    yield make, lost
    for claims in made:
        claims.close()


def elsewhere(monkeypatch):
    """Has the processes of this machine look as those of another one."""
    monkeypatch.setattr(leases, "is_here", lambda _holder: None)


def known(claims):
    return {arm: standing.ends for arm, standing in standings(claims.folder).items()}


def test_of_two_workers_one_has_an_arm_and_its_end_is_told(workers, tmp_path):
    make, _ = workers
    one, two = make(), make()
    assert one.claim("a.1-seed0", 1)
    assert not two.claim("a.1-seed0", 1)
    assert two.claim("b", 1)
    assert known(one) == {"a.1-seed0": [None], "b": [None]}
    assert two.lives("a.1-seed0", 1) is True
    one.end("a.1-seed0", "failed", {"error": "why"})
    assert json.loads((tmp_path / "queue" / "a.1-seed0.1.failed").read_text()) == {"error": "why"}
    assert two.claim("a.1-seed0", 2)
    two.end("a.1-seed0", "done")
    # What a worker has not ended as it is closed is left to others.
    two.close()
    found = standings(tmp_path / "queue")
    assert {arm: each.ends for arm, each in found.items()} == {
        "a.1-seed0": ["failed", "done"],
        "b": ["left"],
    }
    assert (found["a.1-seed0"].failures, found["a.1-seed0"].done) == (1, True)
    assert standings(tmp_path / "nothing here") == {}


def test_an_arm_that_has_ended_is_not_lost_to_who_claims_it_next(workers, monkeypatch):
    make, lost = workers
    one, two = make(), make()
    assert one.claim("a", 1)
    assert one.claim("b", 1)
    leave, seen = leases.leave_mark, []

    def leave_and_claim(*mark):
        leave(*mark)
        # At this moment the heart of the first worker beats.
        assert two.claim("a", 2)
        seen.append(one._taken())

    monkeypatch.setattr(leases, "leave_mark", leave_and_claim)
    one.end("a", "failed")
    monkeypatch.undo()
    assert seen == [[]]
    assert (one.held, two.held) == ({"b": 1}, {"a": 2})
    two.end("a", "done")
    assert two.claim("b", 2)
    assert one._taken() == ["b"]
    assert lost == []


def test_a_claim_whose_reply_is_lost_counts(workers, monkeypatch):
    make, _ = workers
    one, two = make(), make()
    link = os.link

    def lossy(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "sent again, for the reply was lost", str(target))

    monkeypatch.setattr(os, "link", lossy)
    assert one.claim("a", 1)
    assert not two.claim("a", 1)
    assert one.held == {"a": 1}

    def no_links(_source, _target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(UserError, match="has no hard links"):
        one.claim("b", 1)
    # Nobody competes with one that is alone.
    assert make(alone=True).claim("b", 1)


def test_a_dead_process_of_this_machine_is_known_at_once(workers, tmp_path):
    make, _ = workers
    program = (
        "import sys; from pathlib import Path; from mtl_jax.studies.leases import Claims\n"
        "claims = Claims(Path(sys.argv[1])); claims.claim('a', 1); print(flush=True); input()"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "queue")]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        own = make()
        found = holder(tmp_path / "queue" / "a.1")
        assert found is not None
        assert found.pid == process.pid
        assert own.lives("a", 1) is True
        process.send_signal(signal.SIGSTOP)
        assert own.lives("a", 1) is True
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        # Dead, though its parent has not heard of it; then gone.
        assert own.lives("a", 1) is False
    assert own.lives("a", 1) is False
    # Another process that has got its number, and one that is hidden, as another user's may be.
    again = leases.dataclasses.replace(found, pid=os.getpid())
    assert is_here(again) is False
    assert is_here(leases.dataclasses.replace(found, user=found.user + 1)) is None
    assert is_here(leases.dataclasses.replace(found, machine="another")) is None


def test_of_another_machine_only_a_heartbeat_that_stands_still_tells(workers, monkeypatch):
    make, lost = workers
    elsewhere(monkeypatch)
    # Its clock is hours behind and its files' times are in the future: neither is looked at.
    one, two = make(), make()
    assert one.claim("a", 1)
    file = one.folder / "a.1"
    os.utime(file, (time.time() + 9999, time.time() + 9999))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    # Not known at the first look; alive when it has moved.
    assert two.lives("a", 1) is None
    until(lambda: two.lives("a", 1))
    # Silent: it may be dead only after a whole lease of that.
    monkeypatch.setattr(one, "_beat", lambda: None)
    began = time.monotonic()
    until(lambda: two.lives("a", 1) is False)
    assert time.monotonic() - began > LEASE / 2
    assert two.claim("a", 2)
    # The slow one learns that it has lost the arm.
    until(lambda: lost)
    assert "this worker has lost a: " in lost[0]
    assert known(one) == {"a": [None, None]}
    assert standings(one.folder)["a"].deaths == 1


def test_a_worker_that_can_not_write_its_heartbeat_gives_up_before_others_take_over(workers):
    make, lost = workers
    one = make(0.4)
    assert one.claim("a", 1)
    next(one.folder.glob("*.worker")).unlink()
    until(lambda: lost)
    assert "lost a: its heartbeat could not be written (No such file" in lost[0]


def test_a_worker_that_can_not_begin_leaves_nothing(tmp_path):
    refused = pytest.raises(UserError, match="raise the limit on the size of a file")
    with largest_file(100), refused:
        Claims(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_can_not_be_read_is_given_a_lease(workers):
    make, _ = workers
    one = make(0.3)
    (one.folder / "a.1").write_text("{")
    assert one.lives("a", 1) is None
    until(lambda: one.lives("a", 1) is False)


def until(true):
    deadline = time.monotonic() + 20
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
