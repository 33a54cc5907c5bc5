"""The files of a checkpoint's tokenizer: copied into a run's folder, and known by their digest."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path

from mtl_jax.core.errors import UserError, cannot_read, cannot_write
from mtl_jax.core.json_files import OBJECT, parse_json

# Whatever transformers may read of a tokenizer, whichever kind it is.
_PATTERNS = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
# Of this it reads which kind of tokenizer there is, where no other file says so.
_CONFIG, _OF_CONFIG = "config.json", ("model_type", "tokenizer_class")


def tokenizer_digest(folder: Path) -> str:
    """Returns the SHA-256 of a folder's tokenizer: of the names and bytes of its files.

    Raises:
        UserError: One of them can't be read.
    """
    hasher = hashlib.sha256()
    for file in tokenizer_files(folder):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise cannot_read(file, error) from error
        if file.name == _CONFIG:
            content = _of_config(content)
        hasher.update(f"{file.name} {len(content)}\n".encode())
        hasher.update(content)
    return hasher.hexdigest()


def _of_config(content: bytes) -> bytes:
    """What of a ``config.json`` is of the tokenizer; all of one that can't be read."""
    try:
        config = parse_json(content.decode(errors="replace"), OBJECT, _CONFIG, "bring it back")
    except UserError:
        return content
    return json.dumps({name: config.get(name) for name in _OF_CONFIG}).encode()


def copy_tokenizer(source: Path, target: Path, *, link: bool = False, shared: bool = False) -> None:
    """Copies a tokenizer's files into a new folder, which appears when it is whole.

    With ``link`` they are hard links to those of ``source``, where the file system has these. With
    ``shared`` others may do the same at once, on any machine, and the first one's stays.

    Byte for byte: what is loaded from there is what is loaded from where they come from,
    whichever version of transformers loads it.

    Raises:
        UserError: It can't be written.
    """
    files = tokenizer_files(source)
    draft = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        for left in () if shared else target.parent.glob(f".{target.name}.[0-9]*"):
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir()
        for file in files:
            (_linked if link else shutil.copyfile)(file, draft / file.name)
        draft.rename(target)
    except OSError as error:
        if not (shared and target.is_dir()):
            raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _linked(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder's tokenizer, and its ``config.json``, in the order of their names.

    Raises:
        UserError: The folder can't be read.
    """
    try:
        names = {path.name: path for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise cannot_read(folder, error) from error
    return [
        path
        for name, path in sorted(names.items())
        if name == _CONFIG or any(Path(name).match(pattern) for pattern in _PATTERNS)
    ]
