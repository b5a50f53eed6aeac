"""What every text has in common: its options, the split into parts, and the order in which documents are drawn."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from sae_match.hub import Lookup
from sae_match.options import option

Part = Literal["train", "evaluation", "all"]

EVALUATION_SHARE = 4
"""One document in this many belongs to the evaluation part."""


@dataclass(frozen=True)
class Document:
    """One text. `id` is unique and stable within its source: a title, a line number or a relative path."""

    id: str
    title: str
    text: str


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


def is_evaluation(source: str, document_id: str) -> bool:
    """True for the documents of the evaluation part: a quarter, chosen by the SHA-256 of `source/document id`."""
    return int(hashlib.sha256(f"{source}/{document_id}".encode()).hexdigest(), 16) % EVALUATION_SHARE == 0


def in_part(source: str, document_id: str, part: Part) -> bool:
    """Whether a document of `source` belongs to `part`. Train and evaluation are disjoint and exhaust all."""
    return part == "all" or is_evaluation(source, document_id) == (part == "evaluation")


def drawing_order(source: str, documents: Iterable[Document], seed: int) -> list[Document]:
    """Return the documents in the pseudo-random order in which a sample takes them.

    The order is by SHA-256 of `seed/source/document id`: it depends neither on the order of reading nor on
    a random generator's version, and a smaller sample is the beginning of a larger one.
    """

    def rank(document: Document) -> tuple[str, str]:
        return hashlib.sha256(f"{seed}/{source}/{document.id}".encode()).hexdigest(), document.id

    return sorted(documents, key=rank)
