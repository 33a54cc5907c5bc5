"""What a checkpoint says of itself: where the run was, and digests of all that lies beside it.

The file formats of arrays notice some damage and miss other; a digest of the values notices
all of it. The manifest is an item of the Orbax checkpoint, so that it is there with the rest or
not at all.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import future

from mtl_jax.core.errors import UserError, cannot_read
from mtl_jax.freezing import partition

ITEM = "manifest"
_FILE = "manifest.json"
_ITEM_BEFORE_SEALS = "progress"


class DamageError(UserError):
    """A checkpoint is not what was saved.

    Attributes:
        reason: In what way, in words.
    """

    def __init__(self, folder: Path, reason: str):
        self.reason = reason
        super().__init__(
            f"the checkpoint {folder} is damaged ({reason}): run train again on its --workdir, "
            "which goes on from the one before it"
        )


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known of a checkpoint beside its arrays; JSON.

    Attributes:
        step: The step that it was saved at.
        run: What the run is, as it gave it: see ``record.identity``.
        progress: Where the run is, as it gave it.
        best: Step and score of the best scored checkpoint up to and with this one, if any.
        needs: Steps of the others that going on from this one may need.
        data: State of the data iterator; each process had this one.
        processes: How many there were.
        digests: Per part its ``digest``.
    """

    step: int
    run: Mapping[str, str]
    progress: dict[str, Any]
    best: tuple[int, float] | None
    needs: tuple[int, ...]
    data: Any
    processes: int
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their place in it, the same before and after Orbax.

    Orbax gives a named tuple back as a dict of its fields, and a tuple as a list.
    """
    return {
        "/".join(_name(key) for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def digest(tree: Any) -> str:
    """SHA-256 over the names, types, shapes and bytes of a tree's leaves."""
    return partition.digest(named(tree))


def _written(manifest: Manifest) -> str:
    content = dataclasses.asdict(manifest)
    return json.dumps({"sha256": _sha256(content), "content": content}, indent=1) + "\n"


def _sha256(content: Mapping[str, Any]) -> str:
    # Of what JSON gives back JSON makes the same text: the order of names is kept.
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read(folder: Path) -> Manifest:
    """The manifest of the checkpoint in ``folder``.

    Raises:
        DamageError: It is not whole, or not there.
        UserError: It is of another version of this package.
    """
    file = folder / ITEM / _FILE
    try:
        signed = json.loads(file.read_text(encoding="utf-8"))
        content, sha256 = signed["content"], signed["sha256"]
    except FileNotFoundError as error:
        if (folder / _ITEM_BEFORE_SEALS).is_dir():
            raise _of_another_version(folder) from error
        raise DamageError(folder, f"{ITEM}/{_FILE} is missing") from error
    except OSError as error:
        refuse_access(file, error)
        raise DamageError(folder, f"{ITEM}/{_FILE} can't be read") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError(folder, f"{ITEM}/{_FILE} can't be read") from error
    if sha256 != _sha256(content):
        raise DamageError(folder, f"{ITEM}/{_FILE} has another digest than it had")
    if content.keys() != {field.name for field in dataclasses.fields(Manifest)}:
        raise _of_another_version(folder)
    if folder.name != str(content["step"]):
        raise DamageError(folder, f"it was saved after step {content['step']}")
    best, needs = content["best"], tuple(content["needs"])
    return Manifest(**{**content, "best": best and (best[0], best[1]), "needs": needs})


def refuse_access(path: Path, error: OSError) -> None:
    """Refuses to go on where a file can't be reached: that does not say that it is damaged.

    Raises:
        UserError: It is not known to be missing, or of another kind.
    """
    if not isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        raise cannot_read(path, error) from error


_KINDS = {
    "run": "run",
    "settings": "settings",
    "config": "config.json",
    "tokenizer": "tokenizer",
}


def refuse_other(folder: Path, known: Manifest, run: Mapping[str, str]) -> None:
    """Refuses a checkpoint that is not of a run.

    Args:
        folder: The checkpoint's.
        known: Its manifest.
        run: What the run is.

    Raises:
        DamageError: It is of another one.
    """
    if unlike := [words for name, words in _KINDS.items() if known.run.get(name) != run[name]]:
        raise DamageError(folder, f"it was saved with another {', '.join(unlike)}")


def _of_another_version(folder: Path) -> UserError:
    return UserError(
        f"the checkpoint {folder} was saved by another version of mtl_jax: use that one, or "
        "another --workdir"
    )


class ManifestHandler(ocp.AsyncCheckpointHandler):
    """Writes a manifest while training goes on; the digests take as long as reading the arrays."""

    async def async_save(
        self, directory: epath.Path, *, args: ManifestSave
    ) -> list[future.Future] | None:
        """As of Orbax."""
        if jax.process_index() != 0:
            return None
        return [
            future.CommitFutureAwaitingContractedSignals(_write(directory, args), name="manifest")
        ]

    def save(self, directory: epath.Path, *, args: ManifestSave) -> None:
        """As of Orbax."""
        asyncio.run(_write(directory, args))

    def restore(self, directory: epath.Path, *, args: ManifestRestore | None = None) -> Manifest:
        """As of Orbax; see ``read``, which needs no manager."""
        del args
        return read(Path(directory).parent)


async def _write(directory: epath.Path, args: ManifestSave) -> None:
    digests = {part: digest(tree) for part, tree in args.arrays.items()}
    manifest = dataclasses.replace(args.manifest, digests=digests)
    (directory / _FILE).write_text(_written(manifest))


@ocp.args.register_with_handler(ManifestHandler, for_save=True)
@dataclasses.dataclass
class ManifestSave(ocp.args.CheckpointArgs):
    """A manifest to save; its digests are those of ``arrays``, numpy trees that must not change."""

    manifest: Manifest
    arrays: Mapping[str, Any]


@ocp.args.register_with_handler(ManifestHandler, for_restore=True)
@dataclasses.dataclass
class ManifestRestore(ocp.args.CheckpointArgs):
    """Asks for a manifest."""
