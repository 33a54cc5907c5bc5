"""The file ``metrics.jsonl`` of a run: steps, measurements, phases, and at its end the result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.core.errors import cannot_read
from mtl_jax.core.json_files import OBJECT, append_line, parsed_lines, read_lines, rewrite_lines
from mtl_jax.runs.monitoring.metric_writers import MetricWriter


def _line(event: str, **properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the lines of an event."""
    return {
        "if": {"properties": {"event": {"const": event}}},
        "then": {"required": list(properties), "properties": properties},
    }


_NUMBER, _COUNT = {"type": "number"}, {"type": "integer", "minimum": 0}
_LINES = {
    "type": "object",
    "required": ["event"],
    "properties": {"event": {"type": "string"}, "unix_seconds": _NUMBER},
    "allOf": [
        _line(
            "step",
            step=_COUNT,
            phase=_COUNT,
            loss=OBJECT,
            grad_norm=_NUMBER,
            learning_rates=OBJECT,
            examples_per_second=_NUMBER,
        ),
        _line(
            "epoch",
            step=_COUNT,
            epoch=_NUMBER,
            phase=_COUNT,
            scenario={"type": "string"},
            seconds=_NUMBER,
            train_loss=OBJECT,
            validation=OBJECT,
        ),
        _line(
            "result",
            step=_COUNT,
            test={"type": ["object", "null"]},
            validation=OBJECT,
            train=OBJECT,
        ),
    ],
}
"""The schema of a line of ``metrics.jsonl``: of what is read again."""


class MetricsLog:
    """Reads and appends the lines, and tells them to whoever watches the run.

    Attributes:
        path: The file, which need not be there.
    """

    def __init__(self, path: Path):
        self.path = path
        self._watchers: Sequence[MetricWriter] = ()
        self._told = 0

    def close(self) -> None:
        """Lets go of what watches."""
        for watcher in self._watchers:
            watcher.close()

    def watch(self, watchers: Sequence[MetricWriter]) -> None:
        """Tells ``watchers`` what the file says and, until ``close``, what it will say."""
        self._watchers = watchers
        for record in self.records() if watchers else ():
            self._tell(record)

    def _tell(self, record: dict[str, Any]) -> None:
        for watcher in self._watchers:
            watcher.log(self._told, record)
        self._told += 1

    def log(self, record: dict[str, Any]) -> None:
        """Appends a line, with the time of day unless it is the result."""
        if record["event"] != "result":
            record = {**record, "unix_seconds": round(time.time(), 3)}
        # First, so that what watches a run that is done, and not opened again, lacks nothing.
        self._tell(record)
        append_line(self.path, record)

    def records(self) -> list[dict[str, Any]]:
        """The lines.

        Raises:
            UserError: One is damaged.
        """
        return read_lines(self.path, _LINES)

    @property
    def lines(self) -> int:
        """How many lines there are, less one that a kill left unfinished."""
        try:
            return self.path.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise cannot_read(self.path, error) from error

    def mend(self) -> str:
        """Drops a damaged line and all after it; says so, if there is one."""
        records, damage = parsed_lines(self.path, _LINES)
        if damage:
            rewrite_lines(self.path, records)
        return damage and f"{self.path} was damaged from line {len(records) + 1} on ({damage})"

    def rewind(self, lines: int) -> None:
        """Drops what it says after so many lines, which will come again."""
        rewrite_lines(self.path, self.records()[:lines])

    def result(self) -> dict[str, Any] | None:
        """The result of the finished run, or None.

        Raises:
            UserError: A line of ``metrics.jsonl`` is damaged.
        """
        final = [record for record in self.records() if record["event"] == "result"]
        return final[-1] if final else None
