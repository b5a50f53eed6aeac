"""What every text has in common: its options, the split into parts, the order of drawing, and rows as documents."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from sae_match.errors import UserError
from sae_match.hub import Lookup
from sae_match.options import option

Part = Literal["train", "evaluation", "all"]

EVALUATION_SHARE = 4
"""One document in this many belongs to the evaluation part."""
TEXT_COLUMNS = ("text", "content", "code")
"""Tried in this order where the configuration names no column."""
LINES_WITHOUT_HEADING = 10_000
"""So many lines without a heading are no WikiText."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can spell them, UTF-8 and tokenizers cannot."""
_ARTICLE_HEADING = re.compile(r"^= ([^=]|[^=].*[^=]) =$")


@dataclass(frozen=True)
class Document:
    """One text. `id` is unique and stable within its source: a title, a line number or a relative path.

    A text too long for memory is an iterable of its consecutive pieces, which is read once at most.
    """

    id: str
    title: str
    text: str | Iterable[str]


@option
class TextSource(ABC):
    """A text, and which windows of it are used. Subclasses say where the documents are.

    A subclass reads its documents in `read`, and states in `identity` what their content depends on. It may live in
    any package: an option file of the group `dataset` names it by `_target_`.

    Class attributes:
        version: to be raised when the same files give other documents.
        location: names of the fields that say where documents are; sources that agree in them share documents.
        downloads: whether reading needs the network, so that windows cut earlier are worth looking for.
    """

    version: ClassVar[int] = 1
    location: ClassVar[tuple[str, ...]] = ()
    downloads: ClassVar[bool] = False

    name: str
    """Short name used in records."""
    part: Part = "all"
    """train | evaluation | all: every source is split by document (a hash of its id) into two disjoint parts."""
    documents: Annotated[int, Field(ge=0)] = 100
    """Number of documents sampled; 0 = every document that is long enough."""
    window_tokens: Annotated[int, Field(ge=2)] = 1024
    """Tokens per window, BOS included."""
    windows_per_document: Annotated[int, Field(ge=0)] = 1
    """Windows taken from each document's start; 0 = as many as fit."""
    seed: int = 0
    """Seed of the document sample."""

    @property
    def label(self) -> str:
        """How the split and the order of drawing know this source: it never changes once windows were cut."""
        return type(self).__name__

    @property
    def advice(self) -> str:
        """What else could help where too few documents are long enough: the end of a sentence."""
        return ""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What the documents depend on, such as the hash of a file; it must change whenever they may.

        Raises:
            UserError: the text is missing.
        """

    @abstractmethod
    def read(self, facts: dict[str, str]) -> Iterator[Document]:
        """Yield every document in a fixed order.

        Args:
            facts: to be filled with what is only known while reading, such as the commit of a branch; it is kept with
                the windows.

        Raises:
            UserError: the text cannot be read.
        """

    def note(self) -> str:
        """What the text is, in words.

        Raises:
            UserError: the text is missing.
        """
        return self.name

    def availability(self, lookup: Lookup) -> str:
        """How the text will be fetched, in words; empty where it is on this machine.

        Raises:
            UserError: it may not be read, or cannot be found.
        """
        return ""

    def resized(self, documents: int, part: Part | None = None) -> Self:
        """The same text with another number of documents, drawn in the same order.

        Raises:
            UserError: there cannot be so many.
        """
        return replace(self, documents=documents, part=part or self.part)

    def overlaps(self, other: TextSource) -> bool:
        """Whether both may hold the same documents: one class and one location, and not the two disjoint parts."""
        same = type(self) is type(other) and all(getattr(self, n) == getattr(other, n) for n in self.location)
        return same and {self.part, other.part} != {"train", "evaluation"}

    def holds(self, document: Document) -> bool:
        """Whether a document belongs to `part`: evaluation is a quarter, chosen by the SHA-256 of `label/id`."""
        evaluation = _sha256(f"{self.label}/{document.id}") % EVALUATION_SHARE == 0
        return self.part == "all" or evaluation == (self.part == "evaluation")

    def rank(self, document: Document) -> int:
        """Documents are drawn by ascending SHA-256 of `seed/label/id`.

        The order depends neither on the order of reading nor on a random generator's version, and a smaller sample is
        the beginning of a larger one.
        """
        return _sha256(f"{self.seed}/{self.label}/{document.id}")

    def key(self) -> dict[str, Any]:
        """Everything that the sample of documents and its windows depend on, apart from the tokenizer.

        Raises:
            UserError: the text is missing.
        """
        kind = type(self)
        sample = {field.name: getattr(self, field.name) for field in fields(TextSource) if field.name != "name"}
        return {
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "version": self.version,
            "source": self.label,
            "content": self.identity(),
            **sample,
        }


def _sha256(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def text_column(columns: Sequence[str], wanted: str | None, where: str) -> str:
    """The column that holds the text: `wanted`, or the first of TEXT_COLUMNS that exists.

    Raises:
        UserError: there is none; the message lists the columns.
    """
    for name in (wanted,) if wanted else TEXT_COLUMNS:
        if name in columns:
            return name
    missing = f"no column {wanted!r}" if wanted else f"none of the columns {', '.join(TEXT_COLUMNS)}"
    raise UserError(f"{where} has {missing}. Its columns: {', '.join(columns)}.\nSet dataset.column to one of them.")


def row_texts(rows: Iterable[Mapping[str, Any]], column: str, where: str) -> Iterator[str]:
    """Yield the text of each row, an empty string for a null.

    Raises:
        UserError: a cell holds anything else than text.
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

    Raises:
        UserError: articles are to be joined and there are no headings.
    """
    if join:
        yield from _join_articles(texts, label)
        return
    for number, text in enumerate(texts, start=1):
        if text.strip():
            yield Document(str(number), f"{label} {number}", text)


def _join_articles(lines: Iterable[str], where: str) -> Iterator[Document]:
    """Join WikiText lines into articles at their ` = Title = ` headings (single =, after a blank line).

    Lines before the first heading belong to no article and are dropped. An id is `number/title`, since titles repeat.
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
