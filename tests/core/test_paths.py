"""Paths as users write them."""

from pathlib import Path

import pytest

from mtl_jax.config.train import DataConfig, TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.paths import expanded
from mtl_jax.runs.workdir import Workdir
from tests.conftest import run_without_home


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, beside the present one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_home_is_a_leading_tilde_as_it_is_written(home):
    here = home.with_name("here")
    for words, found in (
        ("~", home),
        ("~/runs/~", home / "runs" / "~"),
        ("./~", here / "~"),
        ("./~/runs", here / "~" / "runs"),
        (".//~x", here / "~x"),
        ("runs/~", Path("runs/~")),
        ("./runs", Path("runs")),
        ("", Path()),
        ("/~", Path("/~")),
    ):
        assert expanded(words) == found
        # Whoever has it expanded again has the same.
        assert expanded(expanded(words)) == found


def test_every_setting_that_names_a_path_keeps_to_that(home):
    here = home.with_name("here")
    (here / "~").mkdir()
    for words, folder in (("~/x", home / "x"), ("./~/x", here / "~" / "x")):
        assert Workdir(words).path == folder
        data = DataConfig(train_file=f"{words}.csv", test_file=f"{words}.csv")
        config = TrainConfig(
            workdir=words, backbone=words, data=data, cache_folder=words, scenario=f"{words}.json"
        )
        folder.mkdir()
        found = config.absolute()
        assert found.backbone == found.cache_folder == str(folder)
        assert (found.data.train_file, found.scenario) == (f"{folder}.csv", f"{folder}.json")
        assert {str(file) for o in data.origins for _, file in o.files} == {f"{folder}.csv"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("~nobody-has-this-name/x", "~nobody-has-this-name stands for no folder, for there is no"),
        ("a\0b", "has a NUL character in it"),
    ],
)
def test_a_path_that_can_be_none_is_refused(words, reason):
    with pytest.raises(UserError, match=reason):
        Workdir(words)


def test_no_home_at_all_is_told_in_a_line():
    """Of a user that has no entry in the password file either, as in many a container."""
    use = (
        "from mtl_jax.core import downloads, errors, paths\n"
        "os.setuid(4_000_000)\n"
        "for use in (lambda: paths.expanded('~/runs'), downloads.cache_dir):\n"
        "    try:\n"
        "        print(use())\n"
        "    except errors.UserError as error:\n"
        "        print(error)\n"
    )
    done = run_without_home(use)
    assert done.stdout.splitlines() == [
        "~/runs: ~ stands for no folder, for HOME is not set: write the whole path, or ./~ for a "
        "folder of that name",
        "there is no home folder for downloaded files: set MTL_JAX_CACHE to a folder",
    ]
