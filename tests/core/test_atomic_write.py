"""Places for what is to be written, looked at before anyone waits."""

import os
from pathlib import Path

import pytest

from mtl_jax.core.atomic_write import atomic_write, check_folder, first, is_same_file
from mtl_jax.core.errors import UserError


def test_a_folder_is_there_or_can_be_made(tmp_path, monkeypatch):
    check_folder(tmp_path, "--output")
    check_folder(tmp_path / "new" / "one", "--output")
    (tmp_path / "link").symlink_to(tmp_path)
    check_folder(tmp_path / "link" / "new", "--output")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (
        ("file", " is a file"),
        ("file/inside", ": file is a file"),
        ("lost", " is a link that leads nowhere"),
        ("pipe", " is a pipe"),
        ("/dev/null", " is a device"),
    ):
        with pytest.raises(UserError, match=f"--output {name}{kind}: name a folder"):
            check_folder(Path(name), "--output")


@pytest.mark.parametrize("written", [atomic_write, first])
def test_an_error_names_the_file(written, tmp_path):
    """A write names none, and what opens the draft names that."""

    def write(path, device=None):
        with written(path) as draft:
            if device:
                draft.symlink_to(device)
            draft.write_text("words")

    with pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path / "file", "/dev/full")
    assert caught.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path / "gone" / "file")
    assert caught.value.filename == str(tmp_path / "gone" / "file")


def test_one_file_has_many_names(tmp_path):
    file, other = tmp_path / "file", tmp_path / "other"
    file.touch()
    other.touch()
    (tmp_path / "hard").hardlink_to(file)
    (tmp_path / "soft").symlink_to(file)
    with file.open() as opened:
        for same in (file, tmp_path / "hard", tmp_path / "soft", opened.fileno()):
            assert is_same_file(file, same)
    assert not is_same_file(file, other)
    assert not is_same_file(file, tmp_path / "gone")
    # A device may be written to while it is read.
    with open("/dev/null") as null:  # noqa: PTH123
        assert not is_same_file(null.fileno(), null.fileno())
