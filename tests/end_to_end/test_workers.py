"""A study of several workers at once, and one more call that gathers what they have left."""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.core.file_lock import hold
from mtl_jax.core.json_files import read_lines
from mtl_jax.studies import leases
from mtl_jax.studies.builtin.freezing import Freezing, plan_of, run
from mtl_jax.studies.inputs_pool import InputsPool
from mtl_jax.studies.judge import judge
from mtl_jax.studies.leases import Claims, standings
from mtl_jax.studies.results_store import listed, opened
from mtl_jax.studies.runner import conduct, gather, work
from mtl_jax.studies.settings import StudySettings
from tests import forked
from tests.conftest import write_record
from tests.faults.runs import without_times
from tests.faults.workers import Kills, disturbed, results

SCENARIOS = ("all_frozen", "backbone_frozen", "top_1")


def words(folder, flags):
    """The flags of the study."""
    return [f"--workdir={folder}", "--arms", *SCENARIOS, "--seeds", "0", *flags]


def started(module, *more):
    return forked.Popen(
        [sys.executable, "-m", module, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        executable=forked.interpreter(),
    )


def end(process):
    out, err = process.communicate()
    return process.returncode, out, err


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(small_settings, tmp_path_factory):
    """The folder of the study that one call trains; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    study = Freezing(**small_settings, workdir=str(folder), arms=SCENARIOS, seeds=(0,))
    assert run(study, "the command") == 0
    return folder


def scores(folder):
    """What of a report does not depend on the clock."""
    text = (folder / "report.md").read_text()
    return text[text.index("**Quality on the test split**") : text.index("## Scores by class")]


def test_workers_at_once_and_gathered_leave_what_one_call_does(whole, small_flags, tmp_path):
    folder = tmp_path / "study"
    launch = ["local", "--workers=2", "--", "experiment", "freezing", *words(folder, small_flags)]
    # Ended by a scheduler when both are at it, and started again.
    with started("mtl_jax.launch", *launch) as process:
        assert process.stderr is not None
        at_it = set()
        while len(at_it) < 2:
            line = process.stderr.readline()
            if " of 3: " in line:
                at_it.add(line.startswith("[1] "))
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 75, err
    # Of one that has done its short arm meanwhile there is nothing to end.
    assert err.count("ended by SIGTERM") in (1, 2)
    assert not list(folder.glob("report.*"))
    assert not [each for each in standings(folder / "queue").values() if each.claimed]

    status, out, err = end(started("mtl_jax.launch", *launch))
    assert status == 0, err
    said = err.splitlines()
    # The second process's lines are numbered; the report is of the third, when both had ended.
    assert err.count("the report is") == 1
    assert said[-1].endswith(f"the report is {folder}/report.html")
    assert "top_1" in out
    # Of the best arm alone, whose model is to be used.
    (kept,) = folder.glob("arms/*/checkpoints")
    assert kept.parent.name in ("backbone_frozen-seed0", "top_1-seed0")
    assert [without_times(line) for line in lines(folder)] == [
        without_times(line) for line in lines(whole)
    ]
    assert scores(folder) == scores(whole)
    assert "arms trained by workers, each on 4 x cpu" in (folder / "report.md").read_text()


def test_arms_are_listed_by_what_is_trained_at_once(settings, tmp_path, capsys):
    def listed(**more):
        asked = Freezing(**settings, workdir=str(tmp_path / "x"), arms=SCENARIOS, **more)
        assert run(asked, "") == 0
        return capsys.readouterr().out

    assert listed(list_arms=True, seeds=(0,)) == "".join(f"{name}, seed 0\n" for name in SCENARIOS)
    two = listed(list_arms=True, seeds=(0, 1), seeds_at_once=2)
    assert two == "".join(f"{name}, seed 0; {name}, seed 1\n" for name in SCENARIOS)
    assert not (tmp_path / "x").exists()


def only(plan, *names):
    """The plan with some of its arms."""
    groups = [group for group in plan.groups if group[0].name in names]
    return dataclasses.replace(plan, groups=groups)


def test_arms_that_are_done_are_listed_as_such(plan, tmp_path):
    plan, _ = plan
    first, second, third = (f"{name}, seed 0" for name in SCENARIOS)
    assert list(listed(plan)) == [first, second, third]
    assert not (tmp_path / "study").exists()
    assert work(only(plan, SCENARIOS[1]), InputsPool()) == 0
    # Of what a worker has left in the arm's folder, and of what is gathered.
    assert list(listed(plan)) == [first, f"{second} (done)", third]
    with pytest.raises(UserError, match="no results yet: run the study with --gather first"):
        judge(tmp_path / "study")
    assert gather(plan, InputsPool(), "", 0.0) == 2
    shutil.rmtree(tmp_path / "study" / "arms")
    assert list(listed(plan)) == [first, f"{second} (done)", third]
    # Those of a group are trained at once: it waits for the last of them.
    pairs = dataclasses.replace(
        plan, groups=[[a, b] for (a,), (b,) in itertools.pairwise(plan.groups)]
    )
    assert list(listed(pairs)) == [f"{first}; {second}", f"{second}; {third}"]
    assert work(only(plan, SCENARIOS[2]), InputsPool()) == 0
    assert list(listed(pairs)) == [f"{first}; {second}", f"{second}; {third} (done)"]
    other = dataclasses.replace(plan, record={**plan.record, "study": "another"})
    with pytest.raises(UserError, match="was made with another configuration"):
        list(listed(other))


def test_a_study_under_kills_leaves_what_an_undisturbed_one_does(
    whole, small_settings, small_flags, tmp_path
):
    """As ``python -m tests.faults.workers``, which has more workers, arms and kills."""
    folder = tmp_path / "study"
    asked = Kills(workdir=str(folder), workers=2, kills=3, within=0.2)
    command = [sys.executable, "-m", "experiments.freezing", *words(folder, small_flags)]
    killed = disturbed(folder, [*command, "--worker"], asked, forked.Popen)
    study = Freezing(**small_settings, workdir=str(folder), arms=SCENARIOS, seeds=(0,), gather=True)
    assert run(study, "the command") == 0
    assert results(folder) == results(whole)
    known = standings(folder / "queue")
    assert all(standing.done for standing in known.values())
    assert 1 <= sum(standing.deaths for standing in known.values()) <= killed


_KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from mtl_jax.studies.builtin import freezing
from mtl_jax.runs.workdir import Workdir
from mtl_jax.studies import results_store as ledger
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
def kill_within(folder, **_):
    if Path(folder).exists(): kill()
{where} = {what}
sys.exit(freezing.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("Workdir.remove_checkpoints", "kill"),
        ("shutil.rmtree", "kill_within"),
        ("ledger.append_line", "kill"),
    ],
)
def test_a_kill_as_an_arm_is_done_leaves_no_checkpoints(
    where, what, whole, small_settings, small_flags, tmp_path, capsys
):
    folder = tmp_path / "study"
    asked = [f"--workdir={folder}", "--arms=all_frozen", "--seeds=0", *small_flags]
    code = _KILLED.format(where=where, what=what)
    killed = forked.run([sys.executable, "-c", code, *asked], check=False)
    assert killed.returncode == -signal.SIGKILL
    arm = folder / "arms" / "all_frozen-seed0"
    left = [(arm / name).exists() for name in ("checkpoints", ".checkpoints-removed")]
    assert left == [where.startswith("Workdir"), not where.startswith("Workdir")]
    study = Freezing(**small_settings, workdir=str(folder), arms=("all_frozen",), seeds=(0,))
    assert run(study, "the command") == 0
    assert "is done: " in capsys.readouterr().err
    assert not (arm / "checkpoints").exists()
    assert list((arm / ".checkpoints-removed").iterdir()) == []
    assert [without_times(line) for line in lines(folder)] == [
        without_times(line) for line in lines(whole) if line["arm"] == "all_frozen"
    ]


@pytest.fixture
def plan(small_settings, tmp_path):
    """The plan of such a study, and what its report is made from."""
    study = Freezing(**small_settings, workdir=str(tmp_path / "study"), arms=SCENARIOS, seeds=(0,))
    seen = {}

    def leave(path, results, failures, _context):
        seen.update(results=[each["arm"] for each in results], failures=list(failures))
        return path / "report.html"

    return dataclasses.replace(plan_of(study, InputsPool()), report=leave), seen


def test_an_arm_without_a_result_is_counted_as_failed(plan, tmp_path, capsys):
    plan, seen = plan
    with pytest.raises(
        UserError, match=r"no arm .* has a result yet; of the first one: it was not begun"
    ):
        gather(plan, InputsPool(), "", 0.0)
    assert work(only(plan, SCENARIOS[0]), InputsPool()) == 0
    capsys.readouterr()
    # One that failed says why when it is gathered, until it has been trained after all.
    taken = tmp_path / "study" / "arms" / "backbone_frozen-seed0"
    taken.mkdir()
    write_record(taken, {})
    assert work(only(plan, SCENARIOS[1]), InputsPool(), tries=2) == 2
    assert capsys.readouterr().err.count("arm 1 failed: ") == 2
    assert gather(plan, InputsPool(), "", 0.0) == 2
    assert seen["results"] == ["all_frozen"]
    first, second = seen["failures"]
    assert (first["arm"], second["arm"]) == SCENARIOS[1:]
    assert "another configuration" in first["error"]
    assert second["error"] == "it was not begun: let workers go on with the study"

    shutil.rmtree(taken)
    assert work(plan, InputsPool(), tries=3) == 0
    assert gather(plan, InputsPool(), "", 0.0) == 0
    assert seen["results"] == list(SCENARIOS)


def test_one_call_goes_on_with_what_workers_have_left_and_workers_with_that(plan, tmp_path):
    plan, seen = plan
    assert work(only(plan, *SCENARIOS[1:]), InputsPool()) == 0
    # A result that is gone is recreated; one that was trained on other weights is none.
    shutil.rmtree(tmp_path / "study" / "arms" / "top_1-seed0")
    assert gather(plan, InputsPool(), "", 0.0) == 2
    left = tmp_path / "study" / "arms" / "backbone_frozen-seed0" / "result.json"
    assert json.loads(left.read_text())["line"]["arm"] == "backbone_frozen"
    assert work(only(plan, "top_1"), InputsPool()) == 0
    assert conduct(plan, InputsPool(), "", 0.0) == 0
    assert seen["results"] == ["backbone_frozen", "top_1", "all_frozen"]
    assert work(plan, InputsPool()) == 0
    assert {
        name: each.ends.count("done") for name, each in standings(left.parents[2] / "queue").items()
    } == {f"{name}-seed0": 1 for name in SCENARIOS}


def test_what_is_gathered_is_of_one_backbone_and_whole(plan, tmp_path):
    plan, seen = plan
    assert work(plan, InputsPool()) == 0
    arms = tmp_path / "study" / "arms"
    other = arms / "top_1-seed0" / "result.json"
    changed = json.loads(other.read_text())
    changed["line"]["weights_sha256"] = "0" * 64
    other.write_text(json.dumps(changed))
    (arms / "backbone_frozen-seed0" / "result.json").write_text("{")
    assert gather(plan, InputsPool(), "", 0.0) == 2
    first, second = (failure["error"] for failure in seen["failures"])
    assert "backbone_frozen-seed0/result.json is not valid JSON" in first
    assert "has other weights than the runs of it that are done" in second


def test_an_arm_of_a_dead_machine_is_taken_over_though_its_lock_is_kept(plan, monkeypatch):
    """As a file server may do for ever; the claim is of a worker that is known to be dead."""
    plan, _ = plan
    plan = only(plan, SCENARIOS[0])
    ((arm,),) = plan.groups
    with opened(plan, shared=True), contextlib.ExitStack() as stack:
        folder = Path(arm.config.workdir)
        folder.mkdir(parents=True)
        lock = hold(folder / ".lock", shared=False)
        assert lock is not None
        stack.enter_context(lock)
        claims = Claims(Path(plan.workdir) / "queue", lost=lambda _reason: None)
        stack.callback(claims.close)
        assert claims.claim(arm.claim, 1)
        monkeypatch.setattr(leases, "is_here", lambda _holder: False)
        assert work(plan, InputsPool()) == 0
    assert gather(plan, InputsPool(), "", 0.0) == 0


def test_workers_need_no_locks_of_the_study_s_file_system(plan, tmp_path, monkeypatch):
    """As of NFS without its lock service; what is alone in a folder does."""
    plan, seen = plan
    flock = fcntl.flock

    def of_others(file, kind):
        if Path(file.name).is_relative_to(tmp_path / "study"):
            raise OSError(errno.ENOLCK, "no locks")
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", of_others)
    assert work(plan, InputsPool()) == 0
    assert gather(plan, InputsPool(), "", 0.0) == 0
    assert seen["results"] == list(SCENARIOS)
    assert len(read_lines(tmp_path / "study" / "baselines.jsonl")) == 2
    with pytest.raises(UserError, match=r"the file system of .* has no locks"):
        conduct(plan, InputsPool(), "", 0.0)


def test_workers_share_the_folder_with_nobody_else(plan):
    plan, _ = plan
    with (
        opened(plan, shared=True),
        opened(plan, shared=True),
        pytest.raises(UserError, match="another process is working in"),
    ):
        conduct(plan, InputsPool(), "", 0.0)
    with opened(plan), pytest.raises(UserError, match="another process is working in"):
        work(plan, InputsPool())


def test_settings_of_workers(tmp_path):
    def study(**changes):
        return StudySettings(workdir=str(tmp_path), **changes)

    for wrong in ({"tries": 0}, {"lease_seconds": 0.5}, {"lease_seconds": float("nan")}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong)).replace('_', '-')} "):
            study(**wrong)
    with pytest.raises(UserError, match="--worker and --gather cannot be used together"):
        study(worker=True, gather=True)
    own = {"worker", "gather", "list_arms", "tries", "lease_seconds"}
    assert not study().described().keys() & own
    assert study(worker=True, tries=3).record() == study().record()
