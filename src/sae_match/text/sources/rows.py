"""What hub and local datasets share: which column holds the text, and how rows become documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sae_match.errors import UserError
from sae_match.text.source import Document

TEXT_COLUMNS = ("text", "content", "code")
"""Tried in this order where the configuration names no column."""
LINES_WITHOUT_HEADING = 10_000
"""So many lines without a heading are no WikiText."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can spell them, UTF-8 and tokenizers cannot."""
_ARTICLE_HEADING = re.compile(r"^= ([^=]|[^=].*[^=]) =$")


def text_column(columns: Sequence[str], wanted: str | None, where: str) -> str:
    """Return the column that holds the text: `wanted`, or the first of TEXT_COLUMNS that exists.

    Raises UserError, with the list of columns, where there is none.
    """
    for name in (wanted,) if wanted else TEXT_COLUMNS:
        if name in columns:
            return name
    missing = f"no column {wanted!r}" if wanted else f"none of the columns {', '.join(TEXT_COLUMNS)}"
    raise UserError(f"{where} has {missing}. Its columns: {', '.join(columns)}.\nSet dataset.column to one of them.")


def row_texts(rows: Iterable[Mapping[str, Any]], column: str, where: str) -> Iterator[str]:
    """Yield the text of each row, an empty string for a null.

    Raises UserError where a cell holds anything else than text.
    """
    for number, row in enumerate(rows, start=1):
        text = row.get(column)
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise UserError(
                f"{where}, row {number}: column {column!r} holds {type(text).__name__}, not text.\n"
                "Set dataset.column to a text column."
            )
        if not text.isascii() and _LONE_SURROGATE.search(text):
            raise UserError(f"{where}, row {number}: column {column!r} holds half a character (a lone surrogate)")
        yield text


def rows_to_documents(texts: Iterable[str], label: str, join: bool) -> Iterator[Document]:
    """Turn rows into documents: one per row that is not blank, or one per article where `join` is set.

    `label` begins the titles of rows. A row's id is its number from 1.
    Raises UserError where articles are to be joined and there are no headings.
    """
    if join:
        yield from join_articles(texts, label)
        return
    for number, text in enumerate(texts, start=1):
        if text.strip():
            yield Document(str(number), f"{label} {number}", text)


def join_articles(lines: Iterable[str], where: str) -> Iterator[Document]:
    """Join WikiText lines into articles at their ` = Title = ` headings (single =, after a blank line).

    Lines before the first heading belong to no article and are dropped. An id is `number/title`, since titles repeat.
    Raises UserError where there are no headings.
    """
    number, title = 0, ""
    body: list[str] = []
    blank_before = True
    for count, line in enumerate(lines, start=1):
        heading = _ARTICLE_HEADING.match(line.strip()) if blank_before else None
        if heading:
            if number:
                yield Document(f"{number}/{title}", title, "".join(body))
            number, title, body = number + 1, heading.group(1), []
        elif not number and count >= LINES_WITHOUT_HEADING:
            break
        if number:
            body.append(line if line.endswith("\n") else f"{line}\n")
        blank_before = not line.strip()
    if not number:
        raise UserError(
            f"{where}: dataset.join_articles=true, but no WikiText heading (` = Title = `) was found.\n"
            "Set dataset.join_articles=false where every row is a document."
        )
    yield Document(f"{number}/{title}", title, "".join(body))
