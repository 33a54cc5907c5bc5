"""The folder of a run: ``config.json``, ``metrics.jsonl``, ``certificate.json``, the tokenizer."""

from __future__ import annotations

import functools
import json
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mtl_jax import processes
from mtl_jax.config import LIMITS
from mtl_jax.data_config import refuse_blank
from mtl_jax.errors import UserError, cannot_write
from mtl_jax.jsonfiles import (
    append_line,
    parsed_lines,
    read_lines,
    rewrite_lines,
    write_json,
)
from mtl_jax.locks import exclusive, hold, without_locks
from mtl_jax.watchers import Watcher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# What a folder may hold before it is a run's.
_LOCKS = (".lock", ".config.json.lock")
# See ``whole``: none is being written while this process holds the lock.
_DRAFTS = ".config.json.[0-9]*"


def _lasting(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record may not change, wherever it has the limits: some studies' settings do."""
    kept = {name: value for name, value in record.items() if name != "environment"}
    if isinstance(settings := kept.get("settings"), dict):
        kept["settings"] = {name: v for name, v in settings.items() if name not in LIMITS}
    return kept


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            line
            for name in names
            for line in _differences(
                old.get(name), new.get(name), f"{path}.{name}" if path else name
            )
        ]
    return [] if old == new else [f"{path} was {old!r}, now {new!r}"]


class Workdir:
    """Opens the folder of a run, or makes it.

    Attributes:
        path: The folder.
        checkpoints: The folder of the checkpoints in it.
    """

    def __init__(self, path: str | Path):
        """Raises UserError where ``path`` is empty: that would be the present folder."""
        refuse_blank("workdir", [str(path)])
        self.path = Path(path).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self._metrics = self.path / "metrics.jsonl"
        self._lock: IO[bytes] | None = None
        self._watchers: Sequence[Watcher] = ()
        self._told = 0

    @property
    def exists(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / "config.json").exists()

    def config(self) -> dict[str, Any]:
        """What ``claim`` recorded.

        Raises:
            UserError: No run has begun here.
        """
        try:
            return json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                f"{self.path} is not the folder of a run (no config.json): train one there first"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}/config.json can't be read ({error})") from error

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
        processes.on_main(functools.partial(self._claim, record, shared=shared))
        if processes.count() > 1:
            self._be_seen()

    def _be_seen(self) -> None:
        # A name that no file has had: what is old may be on each process's own disk alike.
        mark = self.path / processes.agreed(f".seen-{secrets.token_hex(8)}")
        processes.on_main(functools.partial(self._leave, mark))
        try:
            processes.in_all(functools.partial(self._look_for, mark))
        finally:
            if processes.is_main():
                mark.unlink(missing_ok=True)

    def _leave(self, mark: Path) -> None:
        try:
            mark.touch()
        except OSError as error:
            raise self._unusable(mark, error) from error

    def _look_for(self, mark: Path) -> None:
        if not processes.awaited(mark.exists):
            raise UserError(
                f"--workdir {self.path} is not seen by process {processes.index()}, which looked "
                "for what the first one has written there: name a folder on a file system that "
                "all mount"
            )

    def _claim(self, record: dict[str, Any], *, shared: bool) -> None:
        self._take_lock(shared=shared)
        with exclusive(self.path / "config.json", self._unusable):
            if self.exists:
                self.refuse_another(record)
                return
            for draft in self.path.glob(_DRAFTS):
                draft.unlink(missing_ok=True)
            if any(path.name not in _LOCKS for path in self.path.iterdir()):
                raise UserError(f"{self.path} is not empty and holds no run: name a new folder")
            write_json(self.path / "config.json", record)

    def refuse_another(self, record: dict[str, Any]) -> None:
        """Raises ``UserError`` where the folder was made with another record than this."""
        if changed := self.differences(record):
            raise UserError(
                f"{self.path} was made with another configuration ({'; '.join(changed)}): "
                "use another --workdir, or the settings it was made with"
            )

    def differences(self, record: dict[str, Any]) -> list[str]:
        """How a record differs from that of ``claim`` in what may not change, in words."""
        record = json.loads(json.dumps(record))
        return _differences(_lasting(self.config()), _lasting(record))

    def keep_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Puts a copy beside the model, so that the folder is all that predicting needs."""
        if not processes.is_main():
            return
        try:
            tokenizer.save_pretrained(self.path / "tokenizer")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _take_lock(self, *, shared: bool) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.path / ".lock", shared=shared)
        except OSError as error:
            raise without_locks(self.path, error) or self._unusable(self.path, error) from error
        if self._lock is None:
            raise UserError(
                f"another process is working in {self.path}: wait for it, or use another --workdir"
            )

    def _unusable(self, _folder: Path, error: OSError) -> UserError:
        return UserError(
            f"--workdir {self.path} can't be used ({error.strerror}): name another folder"
        )

    def close(self) -> None:
        """Lets another process work here."""
        for watcher in self._watchers:
            watcher.close()
        if self._lock is not None:
            self._lock.close()

    def watch(self, watchers: Sequence[Watcher]) -> None:
        """Tells ``watchers`` what ``metrics.jsonl`` says and, until ``close``, what it will say."""
        self._watchers = watchers
        for record in self.records() if watchers else ():
            self._tell(record)

    def _tell(self, record: dict[str, Any]) -> None:
        for watcher in self._watchers:
            watcher.log(self._told, record)
        self._told += 1

    def log(self, record: dict[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl``, with the time of day unless it is the result."""
        if record["event"] != "result":
            record = {**record, "unix_seconds": round(time.time(), 3)}
        # First, so that what watches a run that is done, and not opened again, lacks nothing.
        self._tell(record)
        append_line(self._metrics, record)

    def records(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return read_lines(self._metrics)

    @property
    def lines(self) -> int:
        """How many lines ``metrics.jsonl`` has, less one that a kill left unfinished."""
        return self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0

    def mend(self) -> str:
        """Drops a damaged line of ``metrics.jsonl`` and all after it; says so, if there is one."""
        records, damage = parsed_lines(self._metrics)
        if damage:
            rewrite_lines(self._metrics, records)
        return damage and f"{self._metrics} was damaged from line {len(records) + 1} on ({damage})"

    def rewind(self, lines: int) -> None:
        """Drops what ``metrics.jsonl`` says after so many lines, which will come again."""
        rewrite_lines(self._metrics, self.records()[:lines])

    def remove_checkpoints(self) -> None:
        """Frees the disk of them; the result stays. A kill leaves all of them or none."""
        gone = self.path / ".checkpoints-removed"
        # Of a call before, that was killed.
        shutil.rmtree(gone, ignore_errors=True)
        if self.checkpoints.is_dir():
            self.checkpoints.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def certificate(self) -> dict[str, Any]:
        """What ``certificate.json`` says."""
        return json.loads((self.path / "certificate.json").read_text(encoding="utf-8"))

    def result(self) -> dict[str, Any] | None:
        """The result of the finished run, or None."""
        final = [record for record in self.records() if record["event"] == "result"]
        return final[-1] if final else None
