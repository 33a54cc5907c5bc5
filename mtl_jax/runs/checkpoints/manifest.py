"""What a checkpoint says of itself: where the run was, and digests of all that lies beside it.

The file formats of arrays notice some damage and miss other; a digest of the values notices
all of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax.core.errors import UserError, cannot_read

# The one item of a checkpoint as Orbax sees it: a folder with the manifest, and a file of each
# part's arrays.
ITEM = "state"
FILE = "manifest.json"
# Of earlier versions: the items that had the manifest, with its file; those of arrays, which were
# array checkpoints of Orbax; and what there was before there were manifests.
_BEFORE = {"manifest": "manifest.json", "seal": "seal.json"}
_ARRAYS_BEFORE = ("params", "optimizer", "reference")
_BEFORE_MANIFESTS = "progress"


def is_earlier(folder: Path) -> bool:
    """Whether an earlier version saved the checkpoint in ``folder``: see ``earlier``."""
    return any(_is_item(folder / item) for item in (*_BEFORE, *_ARRAYS_BEFORE))


def _is_item(folder: Path) -> bool:
    # Path.is_dir raises an error where it may not look; whoever reads tells of that.
    return os.path.isdir(folder)  # noqa: PTH112


class DamageError(UserError):
    """A checkpoint is not what was saved.

    Attributes:
        reason: In what way, in words.
    """

    def __init__(self, folder: Path, reason: str):
        self.reason = reason
        again, then = "run train again on its --workdir", "goes on from the one before it"
        if is_earlier(folder):
            again = f"{again} with the earlier version of mtl_jax that saved it"
        super().__init__(f"the checkpoint {folder} is damaged ({reason}): {again}, which {then}")


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
        frozen: Digest of the pre-trained encoder, which has the parameters that this checkpoint
            lacks: see ``frozen_leaves``. None where it has all, as those of earlier versions.
        digests: Per part its ``digest``.
        best_of: Where the best one has no checkpoint of its own, so that its parameters are a part
            of this one: what ``frozen`` is for these, and the ``phase`` that they are of.
    """

    step: int
    run: Mapping[str, str]
    progress: dict[str, Any]
    best: tuple[int, float] | None
    needs: tuple[int, ...]
    data: Any
    processes: int
    frozen: str | None = None
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    best_of: Mapping[str, Any] | None = None


def written(manifest: Manifest) -> str:
    """The content of its file."""
    content = dataclasses.asdict(manifest)
    return json.dumps({"sha256": _sha256(content), "content": content}, indent=1) + "\n"


def _sha256(content: Mapping[str, Any]) -> str:
    # Of what JSON gives back JSON makes the same text: the order of names is kept.
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def path(folder: Path) -> Path:
    """The file of the manifest of the checkpoint in ``folder``."""
    before = (item for item in _BEFORE if _is_item(folder / item))
    if item := next(before, next(iter(_BEFORE)) if is_earlier(folder) else None):
        return folder / item / _BEFORE[item]
    return folder / ITEM / FILE


def read(folder: Path) -> Manifest:
    """The manifest of the checkpoint in ``folder``.

    Raises:
        DamageError: It is not whole, or not there.
        UserError: It is of another version of this package.
    """
    file = path(folder)
    name = file.relative_to(folder).as_posix()
    try:
        signed = json.loads(file.read_text(encoding="utf-8"))
        content, sha256 = signed["content"], signed["sha256"]
    except FileNotFoundError as error:
        if _is_item(folder / _BEFORE_MANIFESTS):
            raise _of_another_version(folder) from error
        raise DamageError(folder, f"{name} is missing") from error
    except OSError as error:
        refuse_access(file, error)
        raise DamageError(folder, f"{name} can't be read") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError(folder, f"{name} can't be read") from error
    if sha256 != _sha256(content):
        raise DamageError(folder, f"{name} has another digest than it had")
    # What there has not been from the beginning may lack.
    names = {field.name for field in dataclasses.fields(Manifest)}
    if not names - {"best_of", "frozen"} <= content.keys() <= names:
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


def refuse_other_run(folder: Path, known: Manifest, run: Mapping[str, str]) -> None:
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
