"""Checkpoints on a real disk: what is kept, what comes back, what a full disk leaves."""

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.data.batches import TextSet, train_batches
from mtl_jax.data.packing.plan import PackingPlan
from mtl_jax.data.tokens import Tokens
from mtl_jax.freezing.scenarios import scenario_rules
from mtl_jax.runs.checkpoints import manifest
from mtl_jax.runs.checkpoints.manager import CheckpointManager, kept
from mtl_jax.runs.checkpoints.manifest import DamageError
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.workdir import Workdir
from tests.conftest import TASKS
from tests.limits import largest_file
from tests.training.test_step import make_program, random_params

TEXTS = 20


def batches(seed=0):
    """An iterator over batches of random texts, as a run has it; 5 in each of 3 epochs."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, 9, TEXTS)
    ids = draw.integers(5, 40, lengths.sum()).astype(np.int32)
    tokens = Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]), 0, 0)
    labels = {task: np.arange(TEXTS, dtype=np.int32) % 3 for task in ("classifier", "sentiment")}
    texts = TextSet(tokens, labels)
    plan = PackingPlan(lengths, 4, 1, 16)
    return train_batches(texts, plan, seed, 0, 3 * plan.steps)


class Run:
    """The pieces of a run that a checkpoint holds, with other numbers at every step."""

    def __init__(self, scenario="backbone_frozen", seed=0):
        self.params = random_params(seed=seed)
        self.partition, program = make_program(self.params, scenario_rules(scenario, 2, TASKS))
        self.start = program.init(self.partition.split(self.params)[0], seed)

    def at(self, step):
        """Parameters and state of a step: every float is moved by it, to odd bit patterns."""

        def move(leaf):
            leaf = np.array(leaf)
            return leaf + step * np.float32(1.1) if leaf.dtype == np.float32 else leaf + step

        params = jax.tree.map(move, self.params)
        params["classifier"]["bias"][:3] = -0.0, np.nextafter(np.float32(0), np.float32(1)), -1e38
        state: Any = self.start.replace(
            step=np.int32(step),
            trainable=self.partition.split(params)[0],
            opt_state=jax.tree.map(move, self.start.opt_state),
            rng=np.asarray(self.start.rng) + np.uint32(step),
        )
        return params, state


@pytest.fixture(scope="module")
def run():
    return Run()


@contextlib.contextmanager
def opened(folder):
    with contextlib.closing(CheckpointManager(folder)) as checkpoints:
        yield checkpoints


def save(checkpoints, run, step, score, data=None, **kept):
    params, state = run.at(step)
    checkpoints.save(params, state, data or batches(), {"step": step}, score, **kept)
    checkpoints.wait()


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def raw(tree):
    return {
        jax.tree_util.keystr(path): (np.asarray(leaf).dtype, np.asarray(leaf).tobytes())
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([0.1, 0.2, 0.3], [2, 3], 3),
        ([0.3, 0.2, 0.1], [1, 2, 3], 1),
        ([0.1, 0.3, 0.2, 0.1], [2, 3, 4], 2),
        ([0.5, None, None], [1, 2, 3], 1),
        ([None, None, None], [2, 3], None),
        ([0.4, 0.4, 0.4, 0.4], [1, 3, 4], 1),
        ([float("nan"), 0.1, float("nan")], [2, 3], 2),
        # Whoever goes back from the fifth to the fourth finds the best of that time.
        ([0.0, 0.1, None, None, 0.2], [2, 4, 5], 5),
        ([0.0, 0.1, None, None, 0.2, None], [5, 6], 5),
    ],
)
def test_the_best_and_the_last_two_are_kept(run, tmp_path, scores, kept, best):
    with opened(tmp_path) as checkpoints:
        assert (checkpoints.last_step, checkpoints.best_step) == (None, None)
        for step, score in enumerate(scores, start=1):
            save(checkpoints, run, step, score)
            assert checkpoints.last_step == step
        assert checkpoints.best_step == best
    assert steps(tmp_path) == kept
    with opened(tmp_path) as checkpoints:
        assert (checkpoints.last_step, checkpoints.best_step) == (len(scores), best)


@pytest.mark.parametrize(
    ("latest", "every", "stay"),
    [
        (1, 0, {2, 7}),
        (2, 0, {1, 2, 6, 7}),
        (3, 0, {1, 2, 5, 6, 7}),
        (9, 0, {1, 2, 3, 4, 5, 6, 7}),
        (1, 2, {1, 2, 4, 6, 7}),
        (1, 3, {1, 2, 3, 6, 7}),
    ],
)
def test_what_each_kept_one_needs_is_kept(latest, every, stay):
    needs = {1: (), 2: (1,), 3: (2,), 4: (1,), 5: (2,), 6: (1,), 7: (2,)}
    assert kept(needs, latest, every) == stay


def test_regular_ones_are_kept_and_what_is_asked_for(run, tmp_path):
    with contextlib.closing(CheckpointManager(tmp_path, latest=1, every=4)) as checkpoints:
        for step in range(1, 10):
            params, state = run.at(step)
            checkpoints.save(params, state, batches(), {}, None, keep=(3,) if step > 3 else ())
    assert steps(tmp_path) == [3, 4, 8, 9]
    # It is known again what each needs.
    with contextlib.closing(CheckpointManager(tmp_path, latest=1, every=0)) as checkpoints:
        save(checkpoints, run, 10, 0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10"]


def test_of_equal_scores_the_best_is_the_first_and_kept(run, tmp_path):
    with opened(tmp_path) as checkpoints:
        for step, score in enumerate([0.2, 0.4, 0.4, 0.4, 0.1], start=1):
            save(checkpoints, run, step, score)
            assert checkpoints.best_step in steps(tmp_path)
        assert checkpoints.best_step == 2
        restored = checkpoints.restore_params(checkpoints.best_step)
        assert raw(restored) == raw(run.at(checkpoints.best_step)[0])
    with opened(tmp_path) as checkpoints:
        assert checkpoints.best_step in steps(tmp_path)


@pytest.mark.parametrize("scenario", ["all_frozen", "backbone_frozen", "top_1"])
def test_everything_comes_back_bit_for_bit(scenario, tmp_path):
    run = Run(scenario)
    data = batches()
    for _ in range(7):
        next(data)
    params, state = run.at(7)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(params, state, data, {"meter": {"sums": [0.1, 1e-300]}}, 0.5)
        following = [next(data) for _ in range(8)]
        checkpoints.wait()
    other = batches()
    with opened(tmp_path) as checkpoints:
        found, restored = checkpoints.restore(7, run.start, run.partition)
        checkpoints.restore_data(7, other)
        progress = checkpoints.progress(7)
        assert raw(checkpoints.restore_params(7)) == raw(params)
    assert raw(found) == raw(params)
    assert raw(restored) == raw(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert progress == {"meter": {"sums": [0.1, 1e-300]}}
    for expected in following:
        batch = next(other)
        assert raw(batch) == raw(expected)
    with pytest.raises(StopIteration):
        next(other)


def test_a_save_in_the_background_does_not_see_what_comes_after(run, tmp_path):
    """The arrays that were given are donated, deleted and written over before it is done."""
    params, state = run.at(1)
    expected = raw(params), raw(state)
    held: Any = jax.tree.map(jax.numpy.array, (params, state))
    with opened(tmp_path) as checkpoints:
        checkpoints.save(held[0], held[1], batches(), {}, 0.5)
        jax.block_until_ready(
            jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)(held)
        )
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(held))
        save(checkpoints, run, 2, 0.1)
        found, restored = checkpoints.restore(1, run.start, run.partition)
    assert (raw(found), raw(restored)) == expected


def test_a_half_written_checkpoint_is_passed_over(run, tmp_path):
    """What a kill leaves behind: a folder that has not got its final name yet."""
    with opened(tmp_path) as checkpoints:
        save(checkpoints, run, 3, 0.5)
    [whole] = tmp_path.iterdir()
    torn = tmp_path / "5.orbax-checkpoint-tmp"
    (torn / "state").mkdir(parents=True)
    for path in (whole / "state").iterdir():
        (torn / "state" / path.name).write_bytes(path.read_bytes()[:10])
    with opened(tmp_path) as checkpoints:
        assert (checkpoints.last_step, checkpoints.best_step) == (3, 3)
        assert raw(checkpoints.restore_params(3)) == raw(run.at(3)[0])
        save(checkpoints, run, 5, 0.6)
        assert checkpoints.last_step == 5
        assert raw(checkpoints.restore_params(5)) == raw(run.at(5)[0])


@pytest.mark.parametrize("kind", ["removed", "truncated", "flipped"])
def test_damage_is_noticed_or_harms_nothing(kind, run, tmp_path, capfd):
    """Of every file and folder of a checkpoint; the values are not read from all of them."""
    whole = tmp_path / "whole"
    with opened(whole) as checkpoints:
        save(checkpoints, run, 3, 0.5)
    expected = [raw(tree) for tree in run.at(3)]
    draw = np.random.default_rng(0)
    noticed = set()
    for path in sorted(path.relative_to(whole) for path in whole.rglob("*")):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        victim = copy / path
        if kind == "removed":
            shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
        elif victim.is_file():
            content = bytearray(victim.read_bytes())
            place = int(draw.integers(len(content)))
            content[place] ^= 1 << int(draw.integers(8))
            victim.write_bytes(content if kind == "flipped" else content[:place])
        saved, data, error = CheckpointReader(copy), batches(), None
        try:
            saved.check(3)
        except DamageError as raised:
            error = str(raised)
        if error is None:
            found = saved.restore(3, run.start, run.partition)
            assert [raw(tree) for tree in found] == expected
            assert saved.restore_data(3, data)
            assert data.get_state() == batches().get_state()
        else:
            assert error.startswith(f"the checkpoint {copy / '3'} is damaged (")
            noticed.add(path.name)
    assert noticed >= {"params.safetensors", "optimizer.safetensors", "manifest.json"}
    assert capfd.readouterr() == ("", "")


def test_what_another_number_of_processes_has_drawn_is_not_taken_over(run, tmp_path):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, run, 3, 0.5)
        data = batches()
        next(data)
        before = data.get_state()
        known = dataclasses.replace(checkpoints.manifest(3), processes=2)
    manifest.path(tmp_path / "3").write_text(manifest.written(known))
    assert not CheckpointReader(tmp_path).restore_data(3, data)
    assert data.get_state() == before


def test_a_disk_without_room_for_files_is_told_in_one_line(run, small_disk, capfd):
    disk = small_disk(64, files=200)
    folder = disk / "checkpoints"
    with opened(folder) as checkpoints:
        save(checkpoints, run, 1, 0.5)
    for number in range(os.statvfs(disk).f_favail - 20):
        (disk / str(number)).touch()
    with opened(folder) as checkpoints, pytest.raises(UserError) as caught:
        save(checkpoints, run, 2, 0.9)
    assert "the disk has room for" in str(caught.value)
    assert capfd.readouterr().err == ""
    with opened(folder) as checkpoints:
        assert raw(checkpoints.restore_params(1)) == raw(run.at(1)[0])


def test_a_full_disk_is_told_in_one_line_and_spares_the_last_checkpoint(run, small_disk):
    disk = small_disk(4)
    folder = disk / "checkpoints"
    with opened(folder) as checkpoints:
        save(checkpoints, run, 1, 0.5)
    filler = disk / "filler"
    free = os.statvfs(disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - 8192))
    with opened(folder) as checkpoints, pytest.raises(UserError) as caught:
        save(checkpoints, run, 2, 0.9)
    message = str(caught.value)
    assert message.startswith(f"the checkpoint could not be saved in {folder} (")
    assert message.endswith("): free some disk space and run again to resume from step 1")
    assert len(message.splitlines()) == 1
    with opened(folder) as checkpoints:
        assert (checkpoints.last_step, checkpoints.best_step) == (1, 1)
        found, restored = checkpoints.restore(1, run.start, run.partition)
        progress = checkpoints.progress(1)
        assert (raw(found), raw(restored)) == tuple(map(raw, run.at(1)))
        assert progress == {"step": 1}

    filler.unlink()
    with opened(folder) as checkpoints:
        save(checkpoints, run, 2, 0.9)
        assert raw(checkpoints.restore_params(2)) == raw(run.at(2)[0])
    assert steps(folder) == [1, 2]


def test_what_the_system_refuses_is_told_with_its_remedy(run, tmp_path):
    def save_two():
        with CheckpointManager(tmp_path) as checkpoints:
            save(checkpoints, run, 1, 0.5)
            with largest_file(100):
                save(checkpoints, run, 2, 0.9)

    with pytest.raises(UserError) as caught:
        save_two()
    assert "File too large" in str(caught.value)
    assert "): raise the limit on the size of a file (ulimit -f) and run" in str(caught.value)
    with opened(tmp_path) as checkpoints:
        # What failed may be what Orbax notes beside the files, which are whole then.
        assert checkpoints.steps in ([1], [1, 2])
        if checkpoints.last_step == 1:
            save(checkpoints, run, 2, 0.9)
        assert raw(checkpoints.restore_params(2)) == raw(run.at(2)[0])
    assert steps(tmp_path) == [1, 2]


def test_a_folder_that_is_moved_meanwhile_is_not_made_anew(run, tmp_path, monkeypatch):
    """Whoever is in it, and names it from there, would have it in two places."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    monkeypatch.chdir(here)
    with opened(Path("checkpoints")) as checkpoints:
        save(checkpoints, run, 1, 0.5)
        here.rename(there)
        with pytest.raises(UserError, match="put back that folder, or go to where it is now, and"):
            save(checkpoints, run, 2, 0.9)
    assert not here.exists()
    with opened(Path("checkpoints")) as checkpoints:
        assert checkpoints.steps == [1]
        save(checkpoints, run, 2, 0.9)
    assert steps(there / "checkpoints") == [1, 2]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a[x]", "the character ["),
        ("a*", "the character *"),
        ("a?", "the character ?"),
        ("**", "the character *"),
        ("a\\b", "the character \\"),
        ("a\\", "the character \\"),
        ("gs:", "the name gs:"),
        ("s3:", "the name s3:"),
        ("\udcff", "a name that is no UTF-8"),
    ],
)
def test_a_folder_whose_checkpoints_could_not_be_read_is_refused(name, what, tmp_path):
    for folder in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(UserError) as caught:
            Workdir(folder).claim({})
        assert f"has {what} in its path, with which no checkpoint could be" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_etils_takes_for_one_on_the_net_is_refused():
    with pytest.raises(UserError, match="has the name s3 in its path"):
        Workdir("/s3/runs/mine").claim({})
    assert not Path("/s3/runs").exists()


def test_checkpoints_of_any_other_folder_are_read(run, tmp_path):
    params, _ = run.at(1)
    for name in (
        "a b",
        "a#b%20c",
        "a:b",
        "]",
        "{a}$HOME&b",
        "-a",
        "a\nb",
        "~",
        "ü'\"",
        "http:",
        "s3",
    ):
        folder = tmp_path / name
        with contextlib.closing(Workdir(folder)) as workdir:
            workdir.claim({})
        with opened(folder / "checkpoints") as checkpoints:
            save(checkpoints, run, 1, 0.5)
        saved = CheckpointReader(folder / "checkpoints")
        saved.check(1)
        assert raw(saved.restore_params(1)) == raw(params)


def test_the_best_that_is_held_is_a_part_of_the_next_checkpoint(run, tmp_path):
    def hold(checkpoints, step, score):
        checkpoints.hold(step, run.at(step)[0], score, frozen=None, phase=1)

    with opened(tmp_path) as checkpoints:
        hold(checkpoints, 1, 0.2)
        hold(checkpoints, 2, 0.5)
        hold(checkpoints, 3, 0.4)
        assert (checkpoints.last_step, checkpoints.best_step) == (None, 2)
        assert steps(tmp_path) == []
        save(checkpoints, run, 4, None)
        save(checkpoints, run, 6, 0.5)
    # The process that goes on has it from there, and hands it on.
    with opened(tmp_path) as checkpoints:
        assert (checkpoints.best_step, checkpoints.best_phase) == (2, 1)
        hold(checkpoints, 7, 0.1)
        save(checkpoints, run, 8, None)
        assert raw(checkpoints.restore_best()) == raw(run.at(2)[0])
        assert raw(checkpoints.restore_params(8)) == raw(run.at(8)[0])
        assert checkpoints.manifest(8).needs == ()
    reader = CheckpointReader(tmp_path)
    assert (reader.best_step, reader.best_phase) == (2, 1)
    assert raw(reader.restore_best()) == raw(run.at(2)[0])
    parts = {path.stem: path.stat().st_size for path in tmp_path.glob("8/state/*.safetensors")}
    assert parts.keys() == {"params", "optimizer", "best"}
    file = tmp_path / "8" / "state" / "best.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamageError, match="best has other values than it had"):
        reader.restore_best()
    with pytest.raises(DamageError, match="best has other values than it had"):
        reader.check(8)


@pytest.mark.parametrize(
    ("scores", "best", "parts"),
    [
        pytest.param((0.1, 0.2, 0.3), 3, {"params"}, id="its own"),
        pytest.param((0.1, 0.3, 0.2), 2, {"best"}, id="held"),
        pytest.param((0.3, 0.2, 0.1), 1, set(), id="saved before"),
    ],
)
def test_at_the_end_the_best_parameters_suffice(run, tmp_path, scores, best, parts):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, run, 1, scores[0])
        checkpoints.hold(2, run.at(2)[0], scores[1])
        save(checkpoints, run, 3, scores[2], only_best=True)
    reader = CheckpointReader(tmp_path)
    reader.check(3)
    assert (set(reader.manifest(3).digests), reader.best_step) == (parts, best)
    assert raw(reader.restore_best()) == raw(run.at(best)[0])
    # Nothing is gone on from there.
    with pytest.raises(DamageError, match="it has no"):
        reader.restore(3, run.start, run.partition)


def test_once_it_is_beaten_it_is_handed_on_no_more(run, tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.hold(1, run.at(1)[0], 0.2)
        save(checkpoints, run, 2, None)
        save(checkpoints, run, 3, 0.3)
        save(checkpoints, run, 4, None)
        assert checkpoints.best_phase is None
        assert checkpoints.manifest(4).needs == (3,)
        assert checkpoints.manifest(4).digests.keys() == {"params", "optimizer"}
        assert raw(checkpoints.restore_best()) == raw(run.at(3)[0])
        params = run.at(5)[0]
        params["classifier"]["bias"][0] = np.inf
        with pytest.raises(UserError, match="not finite after step 5"):
            checkpoints.hold(5, params, 0.9)
        assert checkpoints.best_step == 3
