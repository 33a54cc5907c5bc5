"""The folder of a run: who works in it, what was begun there, the tokenizer, the certificate."""

from __future__ import annotations

import contextlib
import functools
import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mtl_jax.config.data import refuse_blank
from mtl_jax.config.earlier import as_recorded, renamed
from mtl_jax.core import distributed
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, cannot_read, cannot_write
from mtl_jax.core.file_lock import hold, release, without_locks
from mtl_jax.core.json_files import (
    OBJECT,
    read_json,
    write_first,
)
from mtl_jax.core.names import listed
from mtl_jax.core.paths import expanded
from mtl_jax.core.versions import version
from mtl_jax.models.tokenizer_files import copy_tokenizer, tokenizer_digest
from mtl_jax.runs.metrics_log import MetricsLog
from mtl_jax.runs.record_changes import DIGEST, ID, VERSION, changes, json_digest, lasting

# What a folder may hold before it is a run's.
_LOCKS = (".lock", ".config.json.lock")
TUNING = "tuning"
"""Where a run's settings were chosen, before it began."""
# See ``atomic_write``: none is being written while this process holds the lock.
_DRAFTS = ".config.json.[0-9]*"
# What is in the place of checkpoints that ``remove_checkpoints`` has removed.
_REMOVED = ".checkpoints-removed"
# The pre-trained encoder beside the checkpoints; and in a study's folder, from where its runs
# share it: see ``frozen_leaves``.
FROZEN, SHARED = "frozen", ".frozen"
# How far above a run's folder that of its study may be.
_ABOVE = 3


def shared_folder(run: Path) -> Path | None:
    """Where the runs of a study have what they share; None where a run's folder is in none."""
    above = run.absolute().parents[:_ABOVE]
    return next((place for each in above if (place := each / SHARED).is_dir()), None)


# What a folder that has lost its config.json is known by.
_OF_RUN = ("checkpoints", "tokenizer", FROZEN, _REMOVED)


def _empty(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def _without_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != DIGEST}


# Orbax looks for its files by patterns, to which a path adds these; TensorStore takes a backslash
# for a slash.
_PATTERN_CHARACTERS = "*?[\\"
# What etils takes for an address on the net: a part of a path with a colon, or its first one.
_SCHEMES = ("gs", "s3", "az", "hf")


def _unreadable_part(path: Path) -> str | None:
    """What in a path keeps the libraries from reading the checkpoints there; None if nothing."""
    whole = path.absolute()
    for character in _PATTERN_CHARACTERS:
        if character in str(whole):
            return f"the character {character}"
    for place, part in enumerate(whole.parts):
        if part.removesuffix(":") in _SCHEMES and (part.endswith(":") or place == 1):
            return f"the name {part}"
    try:
        str(whole).encode()
    except UnicodeEncodeError:
        return "a name that is no UTF-8"
    return None


class Workdir:
    """Opens the folder of a run, or makes it.

    Attributes:
        path: The folder.
        checkpoints: The folder of the checkpoints in it.
        frozen: The folder of the pre-trained encoder in it.
        tokenizer: The folder of the tokenizer in it.
        metrics: The file ``metrics.jsonl`` in it.
    """

    def __init__(self, path: str | Path):
        """Raises UserError where ``path`` is empty: that would be the present folder."""
        refuse_blank("workdir", [str(path)])
        self.path = expanded(path)
        self.checkpoints = self.path / "checkpoints"
        self.frozen = self.path / FROZEN
        self.tokenizer = self.path / "tokenizer"
        self.metrics = MetricsLog(self.path / "metrics.jsonl")
        self._lock: IO[bytes] | None = None

    @property
    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self._is_there(self.path / "config.json")

    def config(self) -> dict[str, Any]:
        """What ``claim`` recorded, with the ``id`` of the folder and the version that made it.

        Raises:
            UserError: No run has begun here, or it is not what was recorded.
        """
        file, remedy = self.path / "config.json", "put back what was there, or use another folder"
        if not file.is_symlink() and not self._is_there(file):
            if self._has_lost_config():
                raise self._lost_config()
            raise UserError(
                f"{self.path} is not the folder of a run (no config.json): train one there first"
            )
        record = read_json(file, OBJECT, remedy)
        if DIGEST not in record and "settings" not in record:
            raise UserError(
                f"{self.path} is not the folder of a run (its config.json belongs to "
                "something else): name another folder"
            )
        if DIGEST not in record:
            raise UserError(
                f"{file} has no {DIGEST}, as those of earlier versions of mtl_jax: use the "
                "version that made it, or train again in another --workdir"
            )
        if record[DIGEST] != json_digest(_without_digest(record)):
            raise UserError(f"{file} has been changed since the run was begun: {remedy}")
        return record

    def _is_there(self, path: Path) -> bool:
        try:
            return path.exists()
        except OSError as error:
            raise cannot_read(path, error) from error

    def _has_lost_config(self) -> bool:
        return any(self._is_there(self.path / name) for name in _OF_RUN)

    def _lost_config(self) -> UserError:
        return UserError(
            f"{self.path} has lost its config.json, which says what was trained: "
            "put it back, or train again in another --workdir"
        )

    def claim(self, record: dict[str, Any], *, shared: bool = False) -> None:
        """Records what the run is, or checks that it is the run that was begun here.

        Of several processes the first does, and the others learn how that ended.

        Args:
            record: JSON. What is under ``environment`` may change from one start to the
                next, and so may the limits of what is kept, ``config.LIMITS``.
            shared: Whether others that share it may work here meanwhile.

        Raises:
            UserError: The folder belongs to another run, holds something else, or is in use; or
                not all processes see it.
        """
        record = json.loads(json.dumps(record))
        distributed.call_on_main(functools.partial(self._claim, record, shared=shared))
        if distributed.count() > 1:
            self._be_seen()

    def _be_seen(self) -> None:
        # A name that no file has had: what is old may be on each process's own disk alike.
        mark = self.path / distributed.broadcast(f".seen-{secrets.token_hex(8)}")
        distributed.call_on_main(functools.partial(self._leave, mark))
        try:
            distributed.call_on_all(functools.partial(self._look_for, mark))
        finally:
            if distributed.is_main():
                mark.unlink(missing_ok=True)

    def _leave(self, mark: Path) -> None:
        try:
            mark.touch()
        except OSError as error:
            raise self._unusable(error) from error

    def _look_for(self, mark: Path) -> None:
        if not distributed.awaited(mark.exists):
            raise UserError(
                f"--workdir {self.path} is not seen by process {distributed.index()}, which looked "
                "for what the first one has written there: name a folder on a file system that "
                "all mount"
            )

    def _claim(self, record: dict[str, Any], *, shared: bool) -> None:
        if what := _unreadable_part(self.path):
            raise UserError(
                f"--workdir {self.path} has {what} in its path, with which no checkpoint could be "
                "read again: rename that folder, or use another one"
            )
        self._take_lock(shared=shared)
        begun = self.exists
        if not begun:
            self._begin(record, shared=shared)
        # Of several that share the folder another one may have been the first.
        if begun or shared:
            self.refuse_another(record)

    def _begin(self, record: dict[str, Any], *, shared: bool) -> None:
        try:
            # Those of others that share the folder may be at work.
            for draft in () if shared else self.path.glob(_DRAFTS):
                draft.unlink(missing_ok=True)
            drafts = {path.name for path in self.path.glob(_DRAFTS)}
            names = {path.name for path in self.path.iterdir()} - drafts
        except OSError as error:
            raise self._unusable(error) from error
        if self.exists:
            return
        if self._has_lost_config():
            raise self._lost_config()
        if not names <= {*_LOCKS, TUNING}:
            raise UserError(f"{self.path} is not empty and holds no run: name a new folder")
        record = {VERSION: version("mtl-jax"), ID: secrets.token_hex(16), **record}
        write_first(self.path / "config.json", {**record, DIGEST: json_digest(record)})

    def refuse_another(self, record: dict[str, Any]) -> None:
        """Raises ``UserError`` where the folder was made with another record than this."""
        if changed := self._changes(record):
            raise UserError(
                f"{self.path} was made with another configuration ({listed(changed, sep='; ')}): "
                "use another --workdir, or the settings and files it was made with"
            )

    def _changes(self, record: dict[str, Any]) -> list[str]:
        """How a record differs from that of ``claim`` in what may not change, in words."""
        record = json.loads(json.dumps(record))
        old = lasting(self.config())
        if isinstance(settings := old.get("settings"), dict):
            old["settings"] = renamed(settings)
        if "phases" in old:
            # Whether it may be gone on with ``recovery.done_before`` tells.
            record["phases"] = as_recorded(record.get("phases"), old["phases"])
        return changes(old, lasting(record))

    def keep_tokenizer(self, checkpoint: Path, digest: str) -> bool:
        """Keeps a copy of a tokenizer here, so that the folder is all that predicting needs.

        Args:
            checkpoint: The folder of the backbone.
            digest: Of the tokenizer's files in it.

        Returns:
            Whether the copy has been made now.

        Raises:
            UserError: There is one of other files, or it can't be written.
        """
        if self._is_there(self.tokenizer):
            self.check_tokenizer(digest)
            return False
        shared = shared_folder(self.path)
        if shared is None:
            copy_tokenizer(checkpoint, self.tokenizer)
            return True
        # Once in the folder of a study, under its digest; its runs share the bytes.
        source = shared / f"tokenizer-{digest}"
        if self._is_there(source) and tokenizer_digest(source) != digest:
            say(f"warning: {source} was damaged: it is recreated")
            shutil.rmtree(source)
        if not self._is_there(source):
            copy_tokenizer(checkpoint, source, shared=True)
        copy_tokenizer(source, self.tokenizer, link=True)
        return True

    def check_tokenizer(self, digest: str) -> None:
        """Refuses a tokenizer that is not the one that the run was begun with.

        Raises:
            UserError: It is another one, or there is none.
        """
        if not self._is_there(self.tokenizer):
            raise UserError(
                f"{self.tokenizer} is missing: run train again on its --workdir, which makes it "
                "again"
            )
        if not self.tokenizer.is_dir() or tokenizer_digest(self.tokenizer) != digest:
            raise UserError(
                f"{self.tokenizer} is not the tokenizer that the run was begun with: bring that "
                "one back, or remove the folder and run train again, which recreates it"
            )

    def _take_lock(self, *, shared: bool) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.path / ".lock", shared=shared)
        except OSError as error:
            if (no_locks := without_locks(self.path, error)) is None:
                raise self._unusable(error) from error
            if not shared and shared_folder(self.path) is None:
                raise no_locks from error
            # Workers have claimed what they write, and need no lock.
            return
        if self._lock is None:
            raise UserError(
                f"another process is working in {self.path}: wait for it, or use another --workdir"
            )

    def forget_lock(self) -> None:
        """Has the next one to work here lock a new file: who held the old one is known to be dead.

        A lease tells that of a machine whose locks its file server would keep.
        """
        with contextlib.suppress(OSError):
            (self.path / ".lock").unlink()

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"--workdir {self.path} can't be used ({error.strerror}): name another folder"
        )

    def close(self) -> None:
        """Lets another process work here."""
        self.metrics.close()
        if self._lock is not None:
            release(self._lock)

    def remove_checkpoints(self) -> None:
        """Frees the disk of them and of the encoder beside them; the result stays.

        A kill leaves all of them or none.

        An empty folder stays as the sign that they are not lost.
        """
        gone = self.path / _REMOVED
        # Of a call before, that was killed.
        try:
            _empty(gone)
            if self.checkpoints.is_dir():
                self.checkpoints.rename(gone)
                _empty(gone)
            shutil.rmtree(self.frozen, ignore_errors=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    @property
    def checkpoints_removed(self) -> bool:
        """Whether ``remove_checkpoints`` has removed them."""
        return self._is_there(self.path / _REMOVED) and not self._is_there(self.checkpoints)

    def certificate(self) -> dict[str, Any]:
        """What ``certificate.json`` says.

        Raises:
            UserError: It is missing, or no JSON object.
        """
        return read_json(self.path / "certificate.json", OBJECT, "run train again, which makes it")

    def result(self) -> dict[str, Any] | None:
        """The result of the finished run, or None; see ``MetricsLog.result``."""
        return self.metrics.result()
