"""In what order workers take arms, and which they do not."""

import os
import random
import sys
import time

import pytest

from mtl_jax.studies import leases, work_queue
from mtl_jax.studies.leases import Claims, standings
from mtl_jax.studies.work_queue import Unit, WorkQueue, claim_name, forgive, undo, why_lacking
from tests import forked


@pytest.fixture
def open_queue(tmp_path):
    made = []

    def make(units, tries=2, **more):
        claims = Claims(tmp_path / "queue")
        made.append(claims)
        return WorkQueue(claims, units, tries, **more)

    yield make
    for claims in made:
        claims.close()


def units(inputs=2, names=3, seeds=2):
    """Arms, seed by seed, each a unit."""
    found = []
    for seed in range(seeds):
        for i in range(inputs):
            for name in range(names):
                found.append(Unit(len(found), [f"i{i}-n{name}-seed{seed}"], i, (i, name)))
    return found


def drain(queue, how="done", content=None):
    taken = []
    while arms := queue.take():
        taken.extend(arms)
        for arm in arms:
            queue.end(arm, how, content or {})
    return taken


def test_a_worker_stays_with_its_inputs_and_its_compiled_step(open_queue):
    taken = drain(open_queue(units()))
    assert sorted(taken) == sorted(arm for unit in units() for arm in unit.arms)
    # Both seeds of an arm one after the other, and all of the same inputs.
    steps = [name.rpartition("-")[0] for name in taken]
    assert all(steps[i] == steps[i + 1] for i in range(0, len(steps), 2))
    inputs = [name[:2] for name in taken]
    assert len({*inputs[:6]}) == len({*inputs[6:]}) == 1


def test_one_by_itself_goes_seed_by_seed(open_queue):
    queue = open_queue(units(), alone=True)
    (first,) = queue.take()
    assert sorted(queue.kept_inputs) == [0, 1]
    queue.end(first, "done", {})
    assert [first, *drain(queue)] == [arm for unit in units() for arm in unit.arms]
    assert queue.kept_inputs == []


def test_a_second_worker_goes_where_nobody_is(open_queue):
    one, two = open_queue(units()), open_queue(units())
    (first,) = one.take()
    (second,) = two.take()
    assert first[:2] != second[:2]
    one.end(first, "done", {})
    two.end(second, "done", {})
    both = [first, second]
    while len(both) < 12:
        for queue in (one, two):
            for arm in queue.take():
                both.append(arm)
                queue.end(arm, "done", {})
    assert len({*both}) == 12
    assert (one.take(), two.take()) == ([], [])


def test_seeds_that_are_trained_at_once_go_to_one_worker(open_queue):
    groups = [Unit(0, ["a0", "a1", "a2"], 0, 0), Unit(1, ["b0", "b1", "b2"], 0, 1)]
    one, two = open_queue(groups), open_queue(groups)
    first, second = one.take(), two.take()
    assert {tuple(first), tuple(second)} == {tuple(unit.arms) for unit in groups}
    # Of a group that has been left in part the rest is taken.
    one.end(first[0], "done", {})
    for arm in first[1:]:
        one.end(arm, "left", {})
    assert one.take() == first[1:]


def test_what_fails_is_tried_so_often_and_then_named(open_queue, tmp_path):
    folder = tmp_path / "queue"
    arms = units(1, 2, 1)
    queue = open_queue(arms, tries=3)
    taken = drain(queue, "failed", {"error": "it is wrong"})
    assert sorted(taken) == sorted([unit.arms[0] for unit in arms] * 3)
    assert drain(open_queue(arms, tries=3)) == []
    for unit in arms:
        (arm,) = unit.arms
        assert why_lacking(folder, arm, standings(folder)[arm]) == {"error": "it is wrong"}
    # More tries, or a new start by who launches, or by one that is alone.
    assert len(drain(open_queue(arms, tries=4), "failed", {"error": "again"})) == 2
    forgive(folder)
    assert len(drain(open_queue(arms, tries=1), "failed", {"error": "again"})) == 2
    assert len(drain(open_queue(arms, tries=1, alone=True))) == 2
    assert drain(open_queue(arms, alone=True)) == []
    first = arms[0].arms[0]
    undo(folder, first, standings(folder)[first])
    assert drain(open_queue(arms)) == [first]


def test_an_arm_that_kills_its_workers_is_given_up(open_queue, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "is_here", lambda _holder: False)
    folder = tmp_path / "queue"
    (unit,) = units(1, 1, 1)
    for died in range(work_queue.MOST_DEATHS):
        assert open_queue([unit]).take() == unit.arms, died
    assert open_queue([unit]).take() == []
    (arm,) = unit.arms
    said = why_lacking(folder, arm, standings(folder)[arm])["error"]
    assert said == "10 workers have died as they trained it: see what they said"
    forgive(folder, alone=True)
    assert open_queue([unit]).take() == unit.arms


def test_what_a_live_worker_has_is_left_to_it(open_queue, tmp_path):
    (unit,) = units(1, 1, 1)
    (arm,) = unit.arms
    folder = tmp_path / "queue"
    assert why_lacking(folder, arm, leases.Standing())["error"].startswith("it was not begun: ")
    one = open_queue([unit])
    assert one.take() == [arm]
    # Another one does not wait for it to end.
    assert open_queue([unit]).take() == []
    assert "a worker has it" in why_lacking(folder, arm, standings(folder)[arm])["error"]
    forgive(folder)
    assert standings(folder)[arm].claimed
    one.end(arm, "left", {})
    assert "it is not finished" in why_lacking(folder, arm, standings(folder)[arm])["error"]
    assert open_queue([unit]).take() == [arm]


def test_names_of_claims_fit_in_a_folder():
    assert claim_name("/runs/x/arms/top_1-seed0") == "top_1-seed0"
    long = [claim_name(f"/runs/{'a' * 230}{end}") for end in "bc"]
    assert long[0] != long[1]
    assert max(map(len, long)) < 200


def test_the_folder_is_not_listed_for_each_arm(open_queue, monkeypatch):
    """Of as many arms as there may be, each costs one link and one mark."""
    listed, links = [], []
    monkeypatch.setattr(work_queue, "standings", lambda f: listed.append(f) or standings(f))
    link = os.link
    monkeypatch.setattr(os, "link", lambda *names: links.append(names) or link(*names))
    began = time.monotonic()
    assert len(drain(open_queue(units(4, 20, 5)))) == 400
    assert len(links) == 400
    # At the beginning and the end, and every five seconds.
    assert len(listed) <= 3 + (time.monotonic() - began) / 5


WORKER = """
import random, sys, time
from pathlib import Path
from mtl_jax.studies.leases import Claims
from mtl_jax.studies.work_queue import Unit, WorkQueue
folder, arms, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
units = [Unit(i, [f"arm{i}"], 0, i % 5) for i in range(arms)]
claims = Claims(folder / "queue")
queue = WorkQueue(claims, units, 2)
while taken := queue.take():
    for arm in taken:
        with (folder / "begun").open("a") as file:
            file.write(f"{arm}\\n")
        time.sleep(random.random() * seconds)
        with (folder / "done").open("a") as file:
            file.write(f"{arm}\\n")
        queue.end(arm, "done", {})
claims.close()
"""


def test_under_random_kills_no_arm_is_lost_and_none_is_done_twice(tmp_path):
    """Real processes; each kill is of one that lives, which is then started again."""
    arms, kills, dice = 60, 12, random.Random(0)  # noqa: S311
    words = [sys.executable, "-c", WORKER, str(tmp_path), str(arms), "0.05"]
    processes = [forked.Popen(words) for _ in range(4)]
    left = kills
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        place = dice.randrange(4)
        begun = tmp_path / "begun"
        if left and processes[place].poll() is None and begun.exists():
            processes[place].kill()
            processes[place].wait()
            processes[place] = forked.Popen(words)
            left -= 1
    assert [process.returncode for process in processes] == [0] * 4
    done = (tmp_path / "done").read_text().splitlines()
    known = standings(tmp_path / "queue")
    assert {*done} == {f"arm{i}" for i in range(arms)} == {*known}
    assert all(standing.done for standing in known.values())
    # Twice only where the kill came between the work's end and its mark.
    deaths = sum(standing.deaths for standing in known.values())
    assert len(done) - arms <= deaths <= kills - left
