"""Runs whose checkpoints are damaged: what is noticed, what is used, and the same end."""

import contextlib
import dataclasses
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.runs.checkpoints import arrays, frozen_leaves, manifest
from mtl_jax.runs.checkpoints.manifest import DamageError
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.loop import train
from mtl_jax.runs.recovery import recover
from mtl_jax.runs.run_config import identity
from mtl_jax.runs.workdir import Workdir
from mtl_jax.tools.predict import Predictor
from mtl_jax.training.inputs import Inputs
from tests import forked
from tests.conftest import SMALL, write_checkpoint
from tests.end_to_end.test_recipes import everything, known_end
from tests.end_to_end.test_seeds_together import assert_same_params
from tests.faults.runs import without_times

# Of 12 steps the sixth and the last are measured; all of them stay.
KEPT = {"checkpoint_every": 4, "keep_latest": 9}
STEPS = [4, 6, 8, 12]


@pytest.fixture
def settings(small_settings):
    """Of one layer: what is saved, damaged and found does not depend on how many there are."""
    return dict(small_settings)


@pytest.fixture(scope="module")
def finished(small_settings, tmp_path_factory):
    """A finished run: settings, inputs, result."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = TrainConfig(**small_settings | KEPT, workdir=str(folder), scenario="top_1")
    inputs = Inputs(config)
    result = train(config, inputs)
    assert CheckpointReader(folder / "checkpoints").steps == STEPS
    return config, inputs, result


@pytest.fixture
def copy(finished, tmp_path):
    """Copies the run, as it is or as a kill after a step leaves it."""

    def make(last=None):
        shutil.copytree(finished[0].workdir, tmp_path / "run")
        config = dataclasses.replace(finished[0], workdir=str(tmp_path / "run"))
        if last is not None:
            for step in STEPS:
                if step > last:
                    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
            log = tmp_path / "run" / "metrics.jsonl"
            lines = log.read_text().splitlines(keepends=True)
            log.write_text("".join(lines[:-1]))
        return config

    return make


def damage(config, step, part="params"):
    """Changes a byte of a file that a part of a checkpoint is read from."""
    folder = Path(config.workdir) / "checkpoints" / str(step) / "state"
    (file,) = folder.glob(f"{part}.*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def best_of(config):
    return CheckpointReader(Path(config.workdir) / "checkpoints").best_step


def ends_the_same(config, finished):
    whole, inputs, result = finished
    assert without_times(train(config, inputs)) == without_times(result)
    assert everything(config, inputs) == known_end(whole, inputs)
    logs = [read_lines(Path(c.workdir) / "metrics.jsonl") for c in (config, whole)]
    assert without_times(logs[0]) == without_times(logs[1])
    proofs = [Workdir(c.workdir).certificate() for c in (config, whole)]
    assert proofs[0] == proofs[1]


def warnings_of(capsys):
    """But for those of the data, which is small and has texts in several splits."""
    said = capsys.readouterr().err.splitlines()
    of_data = ("validation split is small", "texts are among those of", "distinct texts occur")
    lines = [line for line in said if line.startswith("warning")]
    return [line for line in lines if not any(words in line for words in of_data)]


def set_aside(config):
    folder = Path(config.workdir) / "damaged"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("params", "params (can't be read|has other values than it had)"),
        ("optimizer", "optimizer (can't be read|has other values than it had)"),
        ("manifest", r"state/manifest.json (can't be read|has another digest than it had)"),
    ],
)
def test_the_one_before_a_damaged_checkpoint_is_used(part, reason, copy, finished, capsys):
    config = copy(last=8)
    damage(config, 8, part)
    ends_the_same(config, finished)
    first, second = warnings_of(capsys)
    place = Path(config.workdir) / "damaged" / "8"
    assert first.startswith("warning: checkpoint 8: it is damaged (")
    assert first.endswith(f"); moved to {place}")
    assert re.search(reason, first)
    assert second == "warning: resuming from checkpoint 6"
    assert set_aside(config) == ["8"]


def test_a_folder_that_is_half_written_is_no_checkpoint(copy, finished, capsys):
    config = copy(last=8)
    half = Path(config.workdir) / "checkpoints" / "10"
    shutil.copytree(half.with_name("8"), half)
    (half / "state" / "manifest.json").unlink()
    ends_the_same(config, finished)
    first, second = warnings_of(capsys)
    assert first.startswith(
        "warning: checkpoint 10: it is damaged (state/manifest.json is missing)"
    )
    assert second == "warning: resuming from checkpoint 8"


def test_all_of_them_damaged_the_run_begins_anew(copy, finished, capsys):
    config = copy(last=8)
    for step in (4, 6, 8):
        damage(config, step)
    ends_the_same(config, finished)
    assert warnings_of(capsys)[-1] == "warning: resuming from the beginning"
    assert set_aside(config) == ["4", "6", "8"]
    # Damaged once more, what is there already is not written over.
    damage(config, 12)
    damage(config, 8)
    ends_the_same(config, finished)
    assert set_aside(config) == ["12", "4", "6", "8", "8-2"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_checkpoint_without_what_it_needs_is_not_gone_on_from(gone, copy, finished, capsys):
    config = copy(last=8)
    assert CheckpointReader(Path(config.workdir) / "checkpoints").manifest(8).needs == (6,)
    if gone:
        shutil.rmtree(Path(config.workdir) / "checkpoints" / "6")
    else:
        damage(config, 6)
    ends_the_same(config, finished)
    said = warnings_of(capsys)
    assert said[0].startswith("warning: checkpoint 8: it needs checkpoint 6, which is damaged (")
    assert said[-1] == "warning: resuming from checkpoint 4"
    assert set_aside(config) == (["8"] if gone else ["6", "8"])


def test_a_checkpoint_with_a_longer_log_is_not_gone_on_from(copy, finished, capsys):
    config = copy(last=8)
    log = Path(config.workdir) / "metrics.jsonl"
    known = CheckpointReader(log.parent / "checkpoints").progress(6)["lines"]
    assert known > 0
    log.write_text("".join(log.read_text().splitlines(keepends=True)[: known - 1]))
    ends_the_same(config, finished)
    assert "checkpoint 8: metrics.jsonl has lost lines of before it" in warnings_of(capsys)[0]


@pytest.mark.parametrize("last", [8, None])
@pytest.mark.parametrize("of_end", [False, True])
def test_a_damaged_line_of_the_log_is_a_lost_one(of_end, last, copy, finished, capsys):
    config = copy(last)
    log = Path(config.workdir) / "metrics.jsonl"
    known = CheckpointReader(log.parent / "checkpoints").progress(6)["lines"]
    lines = log.read_bytes().splitlines(keepends=True)
    place = len(lines) - 1 if of_end else known - 1
    lines[place] = b"\0" + lines[place][1:]
    log.write_bytes(b"".join(lines))
    words = f"metrics.jsonl, line {place + 1} is damaged .*: remove that line and run the command"
    with pytest.raises(UserError, match=words):
        Workdir(config.workdir).result()
    ends_the_same(config, finished)
    first, *others = warnings_of(capsys)
    assert f"metrics.jsonl was damaged from line {place + 1} on (" in first
    if not of_end:
        assert others[-1] == "warning: resuming from checkpoint 4"


@pytest.mark.parametrize("damage", [b"\xff{}\n", b"\n", b"5\n", b"[3]\n"])
def test_what_is_no_object_is_a_damaged_line(damage, tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a": 1}\n' + damage + b'{"b": 2}\n{"c"')
    with pytest.raises(UserError, match=r"x.jsonl, line 2 is damaged \("):
        read_lines(file)
    file.write_bytes(b'{"a": "\xc2\x85"}\n{"c"')
    assert read_lines(file) == [{"a": "\x85"}]


def test_a_finished_run_is_mended(copy, finished, capsys):
    config = copy()
    best = best_of(config)
    damage(config, best)
    with pytest.raises(
        UserError, match=f"checkpoints/{best} is damaged .*: run train again on its"
    ):
        Predictor(config.workdir)
    ends_the_same(config, finished)
    assert warnings_of(capsys)[0].startswith("warning: checkpoint 12: ")
    assert Predictor(config.workdir).evaluate("test") == finished[2]["test"]
    # And then it is whole, and said to be done.
    train(config, finished[1])
    assert "is done" in capsys.readouterr().err


def test_damage_that_nobody_needs_is_left_alone(copy, finished, capsys):
    config = copy()
    assert best_of(config) != 4
    damage(config, 4)
    assert without_times(train(config, finished[1])) == without_times(finished[2])
    assert warnings_of(capsys) == []
    assert set_aside(config) == []


def test_a_finished_run_without_its_checkpoints_stays_finished(copy, finished):
    config = copy()
    Workdir(config.workdir).remove_checkpoints()
    assert sorted(path.name for path in Path(config.workdir).iterdir()) == [
        *(".checkpoints-removed", ".lock"),
        *("certificate.json", "config.json", "metrics.jsonl"),
        *(f"predictions-{split}.parquet" for split in ("test", "train", "validation")),
        *("tensorboard", "tokenizer"),
    ]
    with pytest.raises(UserError, match="is done and its checkpoints have been removed: run the"):
        Predictor(config.workdir)
    assert without_times(train(config, finished[1])) == without_times(finished[2])


def test_a_removal_that_was_killed_leaves_none_in_part(copy, finished):
    config = copy()
    removed = Path(config.workdir) / ".checkpoints-removed"
    (Path(config.workdir) / "checkpoints").rename(removed)
    (removed / "6" / "state" / "params.safetensors").unlink()
    assert without_times(train(config, finished[1])) == without_times(finished[2])
    Workdir(config.workdir).remove_checkpoints()
    assert list(removed.iterdir()) == []
    assert without_times(train(config, finished[1])) == without_times(finished[2])


class _BesideTraining(CheckpointReader):
    """While a checkpoint is looked for, the training of the run removes it and has a new one."""

    def __init__(self, folder, moment):
        super().__init__(folder)
        self._moment = moment
        self.new = folder / "12"
        self.new.rename(folder / ".new")

    def _train_on(self, step):
        if (hidden := self.folder / ".new").exists():
            hidden.rename(self.new)
            (self.folder / str(step)).rename(self.folder / ".gone")

    def manifest(self, step):
        if self._moment == "manifest":
            self._train_on(step)
        return super().manifest(step)

    def restore_params(self, step):
        self._train_on(step)
        return super().restore_params(step)


@pytest.mark.parametrize("moment", ["manifest", "params"])
def test_a_reader_beside_the_training_has_the_best_there_is(moment, copy):
    config = copy()
    folder = Path(config.workdir) / "checkpoints"
    best = CheckpointReader(folder).best_step
    assert best is not None
    if best != 12:
        # Of the newest, which is what the reader shall find, the best is itself.
        known = dataclasses.replace(CheckpointReader(folder).manifest(12), best=(12, 1.0))
        manifest.path(folder / "12").write_text(manifest.written(known))
    wanted = CheckpointReader(folder).restore_params(12)
    found = _BesideTraining(folder, moment).restore_best()
    assert found is not None
    assert arrays.digest(found) == arrays.digest(wanted)
    assert (folder / ".gone").exists()


def test_a_best_that_is_missing_for_good_is_told(copy):
    config = copy(last=8)
    folder = Path(config.workdir) / "checkpoints"
    shutil.rmtree(folder / "6")
    with pytest.raises(DamageError, match="checkpoints/6 is damaged"):
        CheckpointReader(folder).restore_best()


def test_predicting_from_a_damaged_checkpoint_is_refused_in_a_line(copy):
    config = copy()
    damage(config, best_of(config))
    for command in ("evaluate", "predict"):
        found = forked.run(
            [sys.executable, "-m", "mtl_jax", command, f"--workdir={config.workdir}"],
            input="the film was good\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert (found.returncode, found.stdout) == (2, "")
        (line,) = found.stderr.splitlines()
        assert line.startswith("error: the checkpoint ")
        assert "run train again on its --workdir, which goes on from the one before it" in line


@contextlib.contextmanager
def changed(config, step):
    """Gives what a checkpoint has kept to be changed, and writes it down."""
    folder = Path(config.workdir) / "checkpoints"
    known = CheckpointReader(folder).manifest(step)
    yield known.progress
    manifest.path(folder / str(step)).write_text(manifest.written(known))


def test_other_versions_are_noted(copy, finished, capsys):
    config = copy(last=8)
    with changed(config, 8) as progress:
        now = progress["depended_on"]["versions"]["jax"]
        progress["depended_on"]["versions"]["jax"] = "0.1"
    ends_the_same(config, finished)
    said = capsys.readouterr().err
    assert f"note: checkpoint 8 was saved with jax 0.1 (now {now}): from here on" in said


def test_those_of_other_weights_are_refused(copy, finished):
    """As a process may have them whose disk has another backbone than that of the first."""
    config = copy(last=8)
    with changed(config, 8) as progress:
        progress["depended_on"]["weights_sha256"] = "0" * 64
    with pytest.raises(
        UserError, match=r"belong to a run with another weights_sha256 \('[0-9a-f]{64}"
    ):
        train(config, finished[1])


def test_where_its_iterators_were_those_of_more_processes_the_steps_tell(copy, finished, capsys):
    """And the next save has an iterator that began there, from which the run goes on as well."""
    config = copy(last=4)
    folder = Path(config.workdir) / "checkpoints"
    known = CheckpointReader(folder).manifest(4)
    two = dataclasses.replace(known, processes=2)
    manifest.path(folder / "4").write_text(manifest.written(two))
    ends_the_same_but_for_data(config, finished)
    saved = CheckpointReader(folder)
    assert saved.progress(8)["drawn"] == 4
    assert saved.manifest(8).data["next_index"] == 4
    assert warnings_of(capsys) == []
    shutil.rmtree(folder / "12")
    log = Path(config.workdir) / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    ends_the_same_but_for_data(config, finished)


def ends_the_same_but_for_data(config, finished):
    ends_the_same(config, finished)
    assert CheckpointReader(Path(config.workdir) / "checkpoints").progress(12)["drawn"] == 4


@pytest.mark.parametrize("before", ["pmap", "mesh"])
def test_on_another_number_of_devices_it_goes_on(before, settings, tmp_path):
    """From four to one: without dropout the numbers differ by rounding, and by nothing else."""
    bert = dataclasses.replace(SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    settings["backbone"] = str(write_checkpoint(tmp_path / "checkpoint", bert))
    settings |= KEPT | {"scenario": "none_frozen"}
    one = TrainConfig(**settings, workdir=str(tmp_path / "one"))
    inputs = Inputs(one)
    train(one, inputs)
    several = dataclasses.replace(one, parallel=before, workdir=str(tmp_path / "several"))
    train(several, inputs)
    for step in (8, 12):
        shutil.rmtree(tmp_path / "several" / "checkpoints" / str(step))
    log = tmp_path / "several" / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    resumed = dataclasses.replace(one, workdir=several.workdir)
    assert train(resumed, inputs)["step"] == 12
    params, wanted = (
        CheckpointReader(Path(c.workdir) / "checkpoints").restore_params(12) for c in (one, resumed)
    )
    assert_same_params(params, wanted)


def others(settings, tmp_path):
    """Settings of runs with checkpoints of the same shapes, by what of them is another's."""
    config = TrainConfig(**settings | KEPT, workdir="", scenario="top_1")
    backbone = write_checkpoint(tmp_path / "other", SMALL, seed=5)
    return {
        "run": config,
        "run, settings, config.json": dataclasses.replace(config, seed=1),
        "run, settings, config.json ": dataclasses.replace(config, head_learning_rate=2e-2),
        "run, settings, config.json  ": dataclasses.replace(config, backbone=str(backbone)),
    }


def test_what_another_run_has_saved_is_not_gone_on_from(settings, copy, finished, tmp_path, capsys):
    config = copy(last=8)
    folder = Path(config.workdir) / "checkpoints"
    for number, (words, other) in enumerate(others(settings, tmp_path).items()):
        other = dataclasses.replace(other, workdir=str(tmp_path / f"of_other{number}"))
        train(other)
        source = Path(other.workdir) / "checkpoints"
        shutil.rmtree(folder / "8", ignore_errors=True)
        shutil.copytree(source / "8", folder / "8")
        reason = f"it was saved with another {words.strip()}"
        with pytest.raises(DamageError, match=f"checkpoints/8 is damaged .{reason}.: run train"):
            Predictor(config.workdir)
        capsys.readouterr()
        ends_the_same(config, finished)
        first, second = warnings_of(capsys)[:2]
        assert first.startswith(f"warning: checkpoint 8: it is damaged ({reason}); moved to ")
        assert second == "warning: resuming from checkpoint 6"
        # As the kill has left it.
        shutil.rmtree(folder / "12")
        log = folder.with_name("metrics.jsonl")
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert set_aside(config) == ["8", "8-2", "8-3", "8-4"]


def test_all_checkpoints_of_another_run_answer_for_none(settings, copy, finished, tmp_path, capsys):
    config = copy()
    folder = Path(config.workdir) / "checkpoints"
    other = TrainConfig(
        **settings | KEPT, workdir=str(tmp_path / "other"), scenario="top_1", seed=7
    )
    train(other)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "other" / "checkpoints", folder)
    with pytest.raises(DamageError, match=r"it was saved with another run, settings, config\.json"):
        Predictor(config.workdir)
    ends_the_same(config, finished)
    assert warnings_of(capsys)[-1] == "warning: resuming from the beginning"


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(copy, finished, capsys):
    config = copy(last=8)
    folder = Path(config.workdir) / "checkpoints"
    (folder / "8").rename(folder / "10")
    ends_the_same(config, finished)
    words = "warning: checkpoint 10: it is damaged (it was saved after step 8); moved to "
    assert warnings_of(capsys)[0].startswith(words)


@pytest.mark.parametrize("gone", ["all", "folder", "last", "best"])
def test_a_finished_run_that_has_lost_its_checkpoints_is_trained_again(
    gone, copy, finished, capsys
):
    """Nobody is sent from one command to the other and back."""
    config = copy()
    folder = Path(config.workdir) / "checkpoints"
    best = best_of(config)
    for step in {"last": [12], "best": [best]}.get(gone, STEPS):
        shutil.rmtree(folder / str(step))
    if gone == "folder":
        folder.rmdir()
    with pytest.raises(UserError, match="run train again on its --workdir"):
        Predictor(config.workdir)
    ends_the_same(config, finished)
    assert warnings_of(capsys)[-1].startswith("warning: resuming from ")
    assert Predictor(config.workdir).evaluate("test") == finished[2]["test"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"labels": 3}', b"\xff"])
def test_a_lost_certificate_is_made_again(content, copy, finished, capsys):
    config = copy()
    file = Path(config.workdir) / "certificate.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    ends_the_same(config, finished)
    (warning,) = warnings_of(capsys)
    assert warning.startswith(f"warning: {file} ")
    assert warning.endswith(": it is recreated")


def test_a_certificate_that_is_lost_with_the_checkpoints_is_told(copy, finished, capsys):
    config = copy()
    Workdir(config.workdir).remove_checkpoints()
    file = Path(config.workdir) / "certificate.json"
    file.unlink()
    train(config, finished[1])
    reason = "is missing or damaged, and can't be made again without the checkpoints"
    assert warnings_of(capsys) == [f"warning: {file} {reason}"]


def test_a_lost_tokenizer_is_made_again(copy, finished, capsys):
    config = copy()
    folder = Path(config.workdir) / "tokenizer"
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="tokenizer is missing: run train again on its --workdir"):
        Predictor(config.workdir)
    ends_the_same(config, finished)
    assert warnings_of(capsys) == [f"warning: {folder} was missing: it is recreated"]
    assert Predictor(config.workdir).evaluate("test") == finished[2]["test"]


@pytest.mark.parametrize("last", [8, None])
@pytest.mark.parametrize("change", ["vocab.txt", "tokenizer_config.json", "one more", "file"])
def test_another_tokenizer_in_the_folder_is_refused(change, last, copy, finished):
    config = copy(last)
    folder = Path(config.workdir) / "tokenizer"
    if change == "vocab.txt":
        words = (folder / change).read_text().split()
        (folder / change).write_text("\n".join([*words[:5], *reversed(words[5:])]) + "\n")
    elif change == "tokenizer_config.json":
        (folder / change).write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    elif change == "one more":
        (folder / "added_tokens.json").write_text('{"film": 41}')
    else:
        shutil.rmtree(folder)
        folder.touch()
    words = "tokenizer is not the tokenizer that the run was begun with: bring that one back, or"
    for use in (lambda: Predictor(config.workdir), lambda: train(config, finished[1])):
        with pytest.raises(UserError, match=words):
            use()
    # And the remedy works.
    folder.unlink() if change == "file" else shutil.rmtree(folder)
    ends_the_same(config, finished)


def test_another_tokenizer_of_the_backbone_is_refused(copy, finished, tmp_path):
    """Its weights, and the sizes of its vocabulary, are the same."""
    config = copy(last=8)
    backbone = tmp_path / "backbone"
    shutil.copytree(config.backbone, backbone)
    begun = dataclasses.replace(config, backbone=str(backbone), workdir=str(tmp_path / "begun"))
    train(begun)
    words = (backbone / "vocab.txt").read_text().split()
    (backbone / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:])]) + "\n")
    with pytest.raises(UserError, match=r"another configuration \(tokenizer_sha256 was '[0-9a-f]+"):
        train(begun)


# What a process is told to be in the way of a file, and not that the file is gone.
OUT_OF_REACH = (
    "checkpoints",
    "checkpoints/8",
    "checkpoints/8/state",
    "checkpoints/8/state/manifest.json",
    "checkpoints/8/state/params.safetensors",
    "checkpoints/8/state/optimizer.safetensors",
    "metrics.jsonl",
)


@pytest.mark.parametrize("place", OUT_OF_REACH)
def test_what_can_not_be_reached_is_not_called_damaged(place, copy, finished, capsys):
    """A link in a circle is what even root can't follow."""
    config = copy(last=8)
    path = Path(config.workdir) / place
    hidden = path.with_name(".hidden")
    path.rename(hidden)
    path.symlink_to(path.name)
    reason = (
        r"can't be read \(Too many levels of symbolic links\): a link in it leads back to itself"
    )
    with pytest.raises(UserError, match=reason) as caught:
        train(config, finished[1])
    assert not isinstance(caught.value, DamageError)
    assert str(caught.value).startswith(
        str(path.parent if place.endswith("8/state") else path)[:-5]
    )
    assert warnings_of(capsys) == []
    assert set_aside(config) == []
    path.unlink()
    hidden.rename(path)
    ends_the_same(config, finished)


def test_what_nobody_may_read_is_not_called_damaged(copy, capsys):
    if os.geteuid() != 0:
        pytest.skip("only root may become another user and back")
    config = copy(last=6)
    Predictor(config.workdir)
    record = Workdir(config.workdir).config()
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "run"
        shutil.copytree(config.workdir, folder)
        (frozen,) = (folder / "frozen").iterdir()
        uses = (
            lambda: Predictor(folder),
            lambda: recover(Workdir(folder), identity(record)),
            lambda: frozen_leaves.keep(frozen.parent, {}, frozen.stem),
        )
        for path, uses_of_path in (
            (folder / "checkpoints", uses[:2]),
            (folder / "checkpoints/6/state/params.safetensors", uses[:2]),
            (folder / "checkpoints/6/state/manifest.json", uses[:2]),
            (frozen, uses[::2]),
        ):
            mode = path.stat().st_mode
            path.chmod(0)
            os.seteuid(65534)
            try:
                for use in uses_of_path:
                    with pytest.raises(UserError, match=r"can't be read \(Permission denied\)"):
                        use()
            finally:
                os.seteuid(0)
                path.chmod(mode)
        assert not (folder / "damaged").exists()
        assert warnings_of(capsys) == []
