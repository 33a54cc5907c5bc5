"""How far the workers of a study are, from files such as they leave."""

import json
import subprocess
import sys

import pytest

from mtl_jax.cli.study import run_study
from mtl_jax.core.command_line import guarded
from mtl_jax.core.errors import UserError
from mtl_jax.launch.__main__ import main
from mtl_jax.studies.leases import Claims
from mtl_jax.studies.status import status_of, status_tables
from mtl_jax.studies.work_queue import MOST_DEATHS


@pytest.fixture
def study(tmp_path):
    """A study of six arms: two done, one failed, one at work, one of a dead worker, one left."""
    folder = tmp_path / "queue"
    folder.mkdir()
    names = [f"a{i}" for i in range(6)]
    arms = [{"arm": name, "seed": 0, "claim": f"{name}-seed0"} for name in names]
    arms[3]["setting"] = {"backbone": "b"}
    (folder / "arms.json").write_text(json.dumps(arms))
    program = (
        "import os, sys; from pathlib import Path; from mtl_jax.studies.leases import Claims\n"
        "Claims(Path(sys.argv[1])).claim('a4-seed0', 1); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    claims = Claims(folder)
    for number, seconds in enumerate((10.0, 30.0)):
        assert claims.claim(f"a{number}-seed0", 1)
        claims.end(f"a{number}-seed0", "done", {"seconds": seconds})
    for number in (1, 2):
        assert claims.claim("a2-seed0", number)
        claims.end("a2-seed0", "failed", {"error": "it is wrong"})
    assert claims.claim("a3-seed0", 1)
    yield tmp_path, claims
    claims.close()


def test_arms_done_running_failed_and_the_time_left(study, capsys):
    folder, claims = study
    status = status_of(str(folder))
    assert (status.arms, status.done, status.waiting) == (6, 2, 1)
    alive, dead = status.running
    assert (alive["arm"], alive["setting"], dead["arm"]) == ("a3", {"backbone": "b"}, "a4")
    assert ("dead" in alive, dead["dead"]) == (False, True)
    assert status.failed == [{"arm": "a2", "seed": 0, "error": "it is wrong", "tries": 2}]
    # Of three arms that take 20 s on the average, one worker has begun one just now.
    assert status.seconds_left == pytest.approx(60, abs=1)
    asked = ["status", f"--workdir={folder}"]
    assert guarded(main, asked) == run_study(asked) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["done"] == second["done"] == 2
    line, running, failed = status_tables(status)
    assert line == "2 of 6 arms done, 2 running, 1 waiting, 1 failed, 1 min left"
    assert not isinstance(running, str)
    assert not isinstance(failed, str)
    assert list(running.columns[0].cells) == ["a3, backbone b", "a4"]
    assert list(failed.columns[3].cells) == ["it is wrong"]
    claims.close()
    assert status_of(str(folder)).seconds_left is None


def test_an_arm_that_its_workers_have_died_of_is_not_said_to_run(study):
    folder, _ = study
    # Nobody takes it over any more: see ``work_queue.MOST_DEATHS``.
    for number in range(2, MOST_DEATHS + 1):
        (folder / "queue" / f"a4-seed0.{number}").hardlink_to(folder / "queue" / "a4-seed0.1")
    status = status_of(str(folder))
    assert [each["arm"] for each in status.running] == ["a3"]
    assert {**status.failed[1], "error": ""} == {"arm": "a4", "seed": 0, "error": "", "tries": 10}
    assert status.failed[1]["error"].startswith("10 workers have died as they trained it")


def test_a_folder_without_a_study_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="wait for its first worker"):
        status_of(str(tmp_path))
    assert guarded(main, ["status"]) == 2
    assert "--workdir" in capsys.readouterr().err
