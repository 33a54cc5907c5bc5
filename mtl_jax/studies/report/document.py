"""A report as data: blocks that the Markdown and the HTML renderer both read.

A text may hold code spans in backticks, and no other markup; everything else in it is
shown as it stands.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table cell: what is compared down the column, and what qualifies it."""

    text: str
    aside: str = ""

    @property
    def plain(self) -> str:
        """The cell on one line."""
        return f"{self.text} {self.aside}".rstrip()


@dataclasses.dataclass(frozen=True)
class Row:
    """A table row; its first cell names it."""

    cells: tuple[Cell, ...]
    style: str = ""
    """``chosen`` for the recommended arm, ``reference`` for what is no arm of the study"""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table. The first column holds names, the others numbers unless ``textual``."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    textual: bool = False


@dataclasses.dataclass(frozen=True)
class Heading:
    """The start of a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Sentences. ``style`` is ``lead`` for the answer of the report, or ``warning``."""

    text: str
    style: str = ""


@dataclasses.dataclass(frozen=True)
class Facts:
    """A few numbers to read first: label, value, and what qualifies it."""

    items: tuple[tuple[str, Cell], ...]


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list of texts."""

    items: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines to be copied as they are."""

    text: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG beside the report."""

    name: str
    png: bytes
    caption: str


Block = Heading | Paragraph | Facts | Bullets | Code | Table | Picture


@dataclasses.dataclass(frozen=True)
class Document:
    """A titled list of blocks."""

    title: str
    subtitle: str
    blocks: tuple[Block, ...]
