"""Markdown and HTML from one document."""

from __future__ import annotations

import base64
import html
import re
from typing import TYPE_CHECKING

from mtl_jax.studies.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Document,
    Facts,
    Heading,
    Paragraph,
    Picture,
    Row,
    Table,
    Verbatim,
)
from mtl_jax.studies.report.style import STYLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_CODE = re.compile(r"`([^`\n]+)`")
# What would start markup where a report could meet it. A lone underscore inside a word, a
# bracket without a target or a "<" before a space are harmless and stay readable.
_MARKDOWN = re.compile(
    r"[\\*`~$]|(?<!\w)_|_(?!\w)|<(?=[a-zA-Z/!?])|&(?=#?\w+;)|\](?=[(\[])"
    r"|^[\[>#]|^[-+](?=\s)|(?<=^\d)[.)](?=\s)"
)
_LONG_WORD = 20
_ESCAPED = r"\\\g<0>"
_BRACKET = re.compile(r"(?<!\\)[\[\]]")


def to_markdown(document: Document) -> str:
    """Renders GitHub-flavoured Markdown that refers to its pictures by file name."""
    parts = [f"# {_md(document.title)}", _md(document.subtitle)]
    parts += [_markdown_block(block) for block in document.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_html(document: Document) -> str:
    """Renders one self-contained HTML file, with its style and pictures inside."""
    anchors, shown = _anchors(document), []
    for place, block in enumerate(document.blocks):
        if place == min(anchors, default=None) and len(anchors) > 2:
            # Behind the answer, which needs no table of contents.
            shown.append(_contents(document, anchors))
        shown.append(_html_block(block, anchors.get(place, "")))
    body = "\n".join(shown)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(document.title)}</title>\n<style>\n{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<header>\n<h1>{_ht(document.title)}</h1>\n"
        f'<p class="subtitle">{_ht(document.subtitle)}</p>\n</header>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _anchors(document: Document) -> dict[int, str]:
    """By the place of each heading a name that no other heading has."""
    found: dict[int, str] = {}
    for place, block in enumerate(document.blocks):
        if isinstance(block, Heading):
            name = re.sub(r"[^a-z0-9]+", "-", block.text.lower()).strip("-") or "section"
            taken = set(found.values())
            numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
            found[place] = next(each for each in (name, *numbered) if each not in taken)
    return found


def _contents(document: Document, anchors: Mapping[int, str]) -> str:
    """Links to the headings."""
    links = []
    for place, name in anchors.items():
        heading = document.blocks[place]
        text = _ht(heading.text) if isinstance(heading, Heading) else ""
        links.append(f'<li><a href="#{name}">{text}</a></li>')
    items = "\n".join(links)
    return f'<nav class="contents" aria-label="Contents">\n<ul>\n{items}\n</ul>\n</nav>'


def _spans(text: str, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    if isinstance(text, Verbatim):
        return plain(text)
    pieces = _CODE.split(" ".join(text.split()))
    return "".join(code(piece) if i % 2 else plain(piece) for i, piece in enumerate(pieces))


def _md(text: str) -> str:
    return _spans(text, lambda piece: _MARKDOWN.sub(_ESCAPED, piece), lambda piece: f"`{piece}`")


def _ht(text: str) -> str:
    if isinstance(text, Verbatim):
        # Whatever direction it is written in, its neighbours keep theirs.
        return f"<bdi>{html.escape(text)}</bdi>"
    return _spans(text, html.escape, lambda piece: f"<code>{html.escape(piece)}</code>")


def _markdown_block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_md(text)}"
        case Paragraph(text, style):
            return f"**{_md(text)}**" if style == "warning" else _md(text)
        case Facts(items):
            return "\n".join(
                f"- {_md(label)}: **{_md(c.text)}** {_md(c.aside)}" for label, c in items
            )
        case Bullets(items, style):
            bold = "**" if style == "warning" else ""
            return "\n".join(f"- {bold}{_md(item)}{bold}" for item in items)
        case Code(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Picture(name, _, caption):
            # A bracket that has no fellow would end the caption.
            return f"![{_BRACKET.sub(_ESCAPED, _md(caption))}]({name})"
        case Table():
            return _markdown_table(block)


def _markdown_table(table: Table) -> str:
    def line(cells: list[str]) -> str:
        # A pipe ends a cell even inside a code span, unless it is escaped there too.
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    rule = ":--" if table.textual else "--:"
    lines = [f"**{_md(table.title)}**\n"] if table.title else []
    lines.append(line([_md(column) for column in table.columns]))
    lines.append(line([":--"] + [rule] * (len(table.columns) - 1)))
    for row in table.rows:
        cells = [_md(cell.plain) for cell in row.cells]
        mark = {"chosen": "**", "reference": "*"}.get(row.style, "")
        lines.append(line([f"{mark}{cell}{mark}" if cell else cell for cell in cells]))
    if table.note:
        lines.append(f"\n{_md(table.note)}")
    return "\n".join(lines)


def _html_block(block: Block, anchor: str) -> str:
    match block:
        case Heading(text):
            return f'<h2 id="{anchor}"><a href="#{anchor}">{_ht(text)}</a></h2>'
        case Paragraph(text, style):
            return f'<p class="{style}">{_ht(text)}</p>' if style else f"<p>{_ht(text)}</p>"
        case Facts(items):
            pairs = (
                f"<div><dt>{_ht(label)}</dt><dd>{_html_cell(cell)}</dd></div>"
                for label, cell in items
            )
            return f'<dl class="facts">\n{"".join(pairs)}\n</dl>'
        case Bullets(items, style):
            kind = f' class="{style}"' if style else ""
            return f"<ul{kind}>\n" + "\n".join(f"<li>{_ht(i)}</li>" for i in items) + "\n</ul>"
        case Code(text):
            return f"<pre><code>{html.escape(text)}</code></pre>"
        case Picture(_, _, caption):
            data = base64.b64encode(block.png).decode("ascii")
            return (
                f'<figure>\n<div class="scroll" tabindex="0" role="region" aria-label="Picture">'
                f'<img src="data:image/png;base64,{data}" '
                f'alt="{html.escape(caption)}"></div>\n<figcaption>{_ht(caption)}</figcaption>\n'
                "</figure>"
            )
        case Table():
            return _html_table(block)


def _html_table(table: Table) -> str:
    # What qualifies a number has a column of its own, so that the numbers align without it.
    split = [any(row.cells[i].aside for row in table.rows) for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{" colspan=2" if double else ""}>{_ht(column)}</th>'
        for column, double in zip(table.columns, split, strict=True)
    )
    named = table.columns if table.textual else ()
    rows = "\n".join(_html_row(row, split, named) for row in table.rows)
    title = f"<h3>{_ht(table.title)}</h3>\n" if table.title else ""
    note = f'\n<p class="note">{_ht(table.note)}</p>' if table.note else ""
    kind = ' class="textual"' if table.textual else ""
    label = html.escape(table.title or table.columns[0])
    return (
        f'<section class="table">\n{title}<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{label}">\n<table{kind}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>{note}\n</section>"
    )


def _html_row(row: Row, split: list[bool], named: Sequence[str]) -> str:
    """A row; where the columns are named its cells have these names, to stand alone as a card."""
    kind = f' class="{row.style}"' if row.style else ""
    name = row.cells[0].text
    # A word that would take the whole of a narrow screen may break anywhere.
    long = ' class="long"' if max(map(len, name.split()), default=0) > _LONG_WORD else ""
    cells = [f'<th scope="row"{long}>{_ht(name)}</th>']
    for place, (cell, double) in enumerate(zip(row.cells, split, strict=True)):
        if place == 0:
            continue
        label = f' data-label="{html.escape(named[place])}"' if named else ""
        shade = (
            f' style="--shade: {cell.shade:.2f}" class="shaded"' if cell.shade is not None else ""
        )
        cells.append(f"<td{label}{shade}>{_ht(cell.text)}</td>")
        if double:
            cells.append(f'<td class="aside">{_ht(cell.aside)}</td>')
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _html_cell(cell: Cell) -> str:
    aside = f" <small>{_ht(cell.aside)}</small>" if cell.aside else ""
    return f"{_ht(cell.text)}{aside}"
