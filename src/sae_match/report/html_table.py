"""HTML made of escaped text: cells, tables, links. Nothing here takes markup from outside."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote


@dataclass(frozen=True)
class Cell:
    """A table cell.

    Attributes:
        text: what is shown; escaped here.
        sort: the number to sort by, where the text is not enough.
        title: where the number comes from, shown by the browser on hovering.
        href: relative path that the text links to.
        kind: CSS class.
    """

    text: str
    sort: float | None = None
    title: str = ""
    href: str | None = None
    kind: str = ""


def escape(text: object) -> str:
    """Text for an element or a quoted attribute; what would let a name pass for another, control characters and marks
    that turn the writing direction, is shown as its code."""
    return html.escape("".join(_visible(character) for character in str(text)), quote=True)


def _visible(character: str) -> str:
    return character if character.isprintable() or character in "\n\t" else f"\\u{ord(character):04x}"


def link(path: str, text: str) -> str:
    """A link to a file by its relative path: what would read as a scheme, query or fragment is quoted."""
    return f'<a href="{html.escape(quote(PurePosixPath(path).as_posix()), quote=True)}">{escape(text)}</a>'


def table(
    header: Sequence[str], rows: Sequence[Sequence[Cell]], *, name: str, filters: Sequence[str] = (), tall: bool = False
) -> str:
    """A table whose columns the page's script sorts, with a choice of values for each column named in `filters`. A
    column of the kind "text" in the first row is aligned left.

    Args:
        name: id of the table; a plain word.
    """
    words = [bool(rows) and rows[0][place].kind == "text" for place in range(len(header))]
    heads = "".join(_head(title, title in filters, left) for title, left in zip(header, words, strict=True))
    lines = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    kind = "scroll tall" if tall else "scroll"
    return (
        f'<div class="{kind}"><table class="sortable" id="{name}">\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>\n"
    )


def _head(title: str, filtered: bool, left: bool) -> str:
    marks = (' class="text"' if left else "") + (" data-filter" if filtered else "")
    # Long names of metrics may break after each part, but not before their mark.
    text = escape(title).replace("/", "/<wbr>").replace(" ↓", "&nbsp;↓")
    return f'<th scope="col"{marks}><button type="button">{text}</button></th>'


def _cell(cell: Cell) -> str:
    attributes = f' class="{escape(cell.kind)}"' if cell.kind else ""
    attributes += f' title="{escape(cell.title)}"' if cell.title else ""
    attributes += f' data-sort="{cell.sort!r}"' if cell.sort is not None else ""
    return f"<td{attributes}>{escape(cell.text) if cell.href is None else link(cell.href, cell.text)}</td>"


def content_hash(text: str) -> str:
    """The hash by which a content security policy admits an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
