"""The folder of a run: ``config.json``, ``metrics.jsonl``, ``certificate.json``, the tokenizer."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mtl_jax.config import LIMITS
from mtl_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    _replace(path, json.dumps(value, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} can't be written ({error.strerror}): make room or access"
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, less a last line that a kill left unfinished."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends an object to a JSON Lines file."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror}): make room or access"
        ) from error


def rewrite_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replaces a JSON Lines file, whole or not at all."""
    _replace(path, "".join(json.dumps(record) + "\n" for record in records))


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
        self.path = Path(path).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self._metrics = self.path / "metrics.jsonl"
        self._lock: IO[bytes] | None = None

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

    def claim(self, record: dict[str, Any]) -> None:
        """Records what the run is, or checks that it is the run that was begun here.

        Args:
            record: JSON. What is under ``environment`` may change from one start to the
                next, and so may the limits of what is kept, ``config.LIMITS``.

        Raises:
            UserError: The folder belongs to another run, or holds something else.
        """
        record = json.loads(json.dumps(record))
        self._take_lock()
        if self.exists:
            if changed := _differences(_lasting(self.config()), _lasting(record)):
                raise UserError(
                    f"{self.path} was made with another configuration ({'; '.join(changed)}): "
                    "use another --workdir, or the settings it was made with"
                )
            return
        if any(path.name != ".lock" for path in self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run: name a new folder")
        write_json(self.path / "config.json", record)

    def keep_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Puts a copy beside the model, so that the folder is all that predicting needs."""
        try:
            tokenizer.save_pretrained(self.path / "tokenizer")
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written ({error.strerror}): make room or access"
            ) from error

    def _take_lock(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is working in {self.path}: wait for it, or use another --workdir"
            ) from error
        except OSError as error:
            raise UserError(
                f"--workdir {self.path} can't be used ({error.strerror}): name another folder"
            ) from error

    def close(self) -> None:
        """Lets another process work here."""
        if self._lock is not None:
            self._lock.close()

    def log(self, record: dict[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl``."""
        append_line(self._metrics, record)

    def records(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return read_lines(self._metrics)

    @property
    def lines(self) -> int:
        """How many lines ``metrics.jsonl`` has, less one that a kill left unfinished."""
        return self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0

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
