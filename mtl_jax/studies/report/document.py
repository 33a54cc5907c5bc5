"""A report as data: blocks that the Markdown and the HTML renderer both read.

A text may hold code spans in backticks, and no other markup; everything else in it is
shown as it stands. Of a ``Verbatim``, such as a text of the data, the backticks are, too.
"""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Control characters, and what turns the direction of a text round or is on its own no character.
_UNSEEN = ("Cc", "Cs")
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class Verbatim(str):
    """A text of a user or of the data, shown as it stands, on one line.

    Characters that steer a terminal, or the direction of what is written beside them, are
    replaced by U+FFFD.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Verbatim:
        """Takes it as it is."""
        line = " ".join(text.split())
        return super().__new__(
            cls,
            "".join(
                "\ufffd" if unicodedata.category(each) in _UNSEEN or each in _TURNS else each
                for each in line
            ),
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table cell: what is compared down the column, and what qualifies it."""

    text: str
    aside: str = ""
    shade: float | None = None
    """how dark its ground is, from 0 to 1, of a table whose cells are shaded"""

    @property
    def plain(self) -> str:
        """The cell on one line."""
        return f"{self.text} {self.aside}".rstrip()

    @property
    def shown(self) -> str:
        """The cell on one line, for a terminal: without the backticks of code spans."""
        return self.plain if isinstance(self.text, Verbatim) else self.plain.replace("`", "")


@dataclasses.dataclass(frozen=True)
class Row:
    """A table row; its first cell names it."""

    cells: tuple[Cell, ...]
    style: str = ""
    """``chosen`` for the recommended arm, ``reference`` for what is no arm of the study"""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table. The first column holds names, the others numbers unless ``textual``.

    On a narrow screen the rows of a ``textual`` one stand as cards, one below the other, and any
    other scrolls in a box of its own.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    textual: bool = False


@dataclasses.dataclass(frozen=True)
class Heading:
    """The start of a section, which the table of contents leads to."""

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
    """A list of texts; of style ``warning`` they are warnings."""

    items: tuple[str, ...]
    style: str = ""


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines to be copied as they are."""

    text: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG beside the report, drawn once, when it is first written."""

    name: str
    draw: Callable[[], bytes]
    caption: str

    @functools.cached_property
    def png(self) -> bytes:
        """What the file holds."""
        return self.draw()


Block = Heading | Paragraph | Facts | Bullets | Code | Table | Picture


@dataclasses.dataclass(frozen=True)
class Document:
    """A titled list of blocks."""

    title: str
    subtitle: str
    blocks: tuple[Block, ...]
