"""The rows that want a GPU: what they say without one, and their measurements on tiny shapes."""

import dataclasses

import pytest

from experiments.benchmarks.__main__ import main
from experiments.benchmarks.gpu import ROWS, SHAPES, GpuSession, outcomes, peak_of


def test_without_a_gpu_every_row_says_that_it_was_not_run(capsys, tmp_path):
    assert main(["--gpu", f"--workdir={tmp_path}"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == [f"gpu {name}" for name in ROWS]
    assert all(": not run (" in line and "; goal at " in line for line in said)


def test_rows_are_measured_on_anything_with_tiny_shapes():
    pytest.importorskip("torch")
    found, notes, failed = outcomes("tiny")
    assert failed == 0
    assert [outcome.name for outcome in found] == ["gpu compiled", "gpu cached", "gpu seeds"]
    assert all(outcome.value > 0 for outcome in found)
    # What a device could compute at most is known of a card alone.
    assert [note.split("`")[1] for note in notes] == ["gpu flops", "gpu evaluation"]


def test_a_row_that_fails_takes_no_other_with_it(monkeypatch):
    monkeypatch.setitem(SHAPES, "wrong", dataclasses.replace(SHAPES["tiny"], seeds=0))
    found, notes, failed = outcomes("wrong", ("seeds", "flops"))
    assert (found, failed) == ([], 1)
    assert notes[0].startswith("`gpu seeds` failed: ZeroDivisionError")
    assert notes[1].startswith("`gpu flops`: not run (")


def test_a_share_is_of_the_peak():
    session = GpuSession(SHAPES["tiny"], 1e9)
    session.__dict__["_full"] = [1e-3, 2e-3, 4e-3]
    outcome = session.outcome("flops")
    assert outcome is not None
    # 2 layers, 4 texts of 8 tokens: 2 (2 32 (4 32² + 2 32 128) + 4 32 4 8²) FLOPs, three times.
    assert outcome.value == pytest.approx(100 * 3 * 2 * (64 * 12288 + 32768) / 2e-3 / 1e9)
    assert outcome.against.text == "0 TFLOP/s"


def test_peaks_of_cards():
    assert peak_of("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("Tesla T4") is None
