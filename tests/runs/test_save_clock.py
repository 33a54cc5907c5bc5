"""Saves by time: as few as can be, for the same end."""

import dataclasses
import json
import time
from pathlib import Path

from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.checkpoints import arrays
from mtl_jax.runs.checkpoints.reader import BEST, CheckpointReader
from mtl_jax.runs.loop import train
from mtl_jax.runs.save_clock import SaveClock
from tests.faults.runs import without_times


def test_it_is_due_when_the_minutes_have_passed():
    each, never = SaveClock(0), SaveClock(1e9)
    assert [each.due(measures=here) for here in (True, False, True)] == [True, False, True]
    assert not never.due(measures=True)
    clock = SaveClock(1e-9)
    while not clock.due(measures=False):
        time.sleep(0)
    clock.start()


def left(folder):
    """What a finished run has: log, best parameters, and the parts of its checkpoints."""
    saved = CheckpointReader(Path(folder) / "checkpoints")
    log = (Path(folder) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    parts = {step: set(saved.manifest(step).digests) for step in saved.steps}
    return without_times(lines), arrays.digest(saved.restore_best()), parts


def test_a_run_ends_the_same_however_often_it_is_saved(small_settings, tmp_path):
    settings = {**small_settings, "scenario": "none_frozen", "epochs": 5}
    often = TrainConfig(**settings, workdir=str(tmp_path / "often"))
    once = dataclasses.replace(often, workdir=str(tmp_path / "once"), checkpoint_minutes=1e6)
    always = dataclasses.replace(often, workdir=str(tmp_path / "always"), checkpoint_minutes=1e-9)
    results = [train(config) for config in (often, once, always)]
    log, best, parts = left(often.workdir)
    last = max(parts)
    # Only what a finished run is asked for; without its result it is measured again from that.
    best_only = dataclasses.replace(
        once, workdir=str(tmp_path / "best-only"), keep_final_state=False
    )
    result = train(best_only)
    path = Path(best_only.workdir) / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    results += [result, train(best_only)]
    assert without_times(results[1:]) == without_times([results[0]] * 4)
    part = "params" if CheckpointReader(path.parent / "checkpoints").best_step == last else BEST
    assert left(path.parent) == (log, best, {last: {part}})
    for config in (once, always):
        other_log, other_best, other_parts = left(config.workdir)
        assert (other_log, other_best) == (log, best)
        if config is once:
            # Nothing in between: the end, and the best without moments where that is another.
            chosen = CheckpointReader(Path(once.workdir) / "checkpoints").best_step
            held = set() if chosen == last else {BEST}
            assert other_parts == {last: {"params", "optimizer"} | held}
        else:
            # One after each step, of which two are kept beside the best.
            assert {last - 1, last} <= other_parts.keys()
