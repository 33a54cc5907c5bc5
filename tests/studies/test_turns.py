"""Work of one worker for all: waited for, and taken over from who is dead or has failed."""

import contextlib

import pytest

from mtl_jax.studies import leases, turns
from mtl_jax.studies.leases import Claims, standings
from mtl_jax.studies.turns import turn


def fail(folder, result):
    with turn(folder, "sum", result.exists) as mine:
        assert mine / 0


def ends(folder):
    return standings(folder)["sum"].ends


def test_it_is_done_once_and_again_where_it_is_gone_or_has_failed(tmp_path):
    result = tmp_path / "result"
    for _ in range(2):
        with turn(tmp_path / "claims", "sum", result.exists) as mine:
            assert mine != result.exists()
            result.touch()
    assert ends(tmp_path / "claims") == ["done"]
    result.unlink()
    with turn(tmp_path / "none", "sum", result.exists, alone=True) as mine:
        assert mine
    assert not (tmp_path / "none").exists()
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "claims", result)
    with turn(tmp_path / "claims", "sum", result.exists) as mine:
        assert mine
    assert ends(tmp_path / "claims") == ["done", "left", "done"]
    assert sorted(path.name for path in (tmp_path / "claims").iterdir()) == [
        *("sum.1", "sum.1.done", "sum.2", "sum.2.left", "sum.3", "sum.3.done")
    ]


def test_one_that_lives_is_waited_for_and_one_that_is_dead_is_not(tmp_path, monkeypatch, capsys):
    result = tmp_path / "result"
    monkeypatch.setattr(turns, "_FIRST_WORD_AFTER", 0.0)
    with contextlib.closing(Claims(tmp_path, lost=lambda _reason: None)) as other:
        assert other.claim("sum", 1)
        # It ends its work as it is looked at.
        monkeypatch.setattr(turns.time, "sleep", lambda _seconds: result.touch())
        with turn(tmp_path, "sum", result.exists) as mine:
            assert not mine
        assert "waiting for another worker, which makes " in capsys.readouterr().err
        result.unlink()
        monkeypatch.setattr(leases, "is_here", lambda _holder: False)
        with turn(tmp_path, "sum", result.exists) as mine:
            assert mine
        assert ends(tmp_path) == [None, "done"]
