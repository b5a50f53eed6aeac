"""Documents, and the two choices about them: which part they belong to, and the order in which they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sae_match.config.schema import Part

EVALUATION_SHARE = 4
"""One document in this many belongs to the evaluation part."""


@dataclass(frozen=True)
class Document:
    """One text. `id` is unique and stable within its source: a title, a line number or a relative path."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Source:
    """An opened dataset: what it is, what its content depends on, and how to read it.

    `name` enters the split and the order of drawing, `identity` the cache key (so it must change whenever
    the documents may), and `read` yields the documents in a fixed order. `facts` is filled by `read` with what is only
    known then, such as the commit of a branch; it is kept with the windows.
    """

    name: str
    identity: dict[str, str]
    read: Callable[[], Iterator[Document]]
    note: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    advice: str = ""
    """What else could help where too few documents are long enough."""


def is_evaluation(source: str, document_id: str) -> bool:
    """True for the documents of the evaluation part: a quarter, chosen by the SHA-256 of `source/document id`."""
    return int(hashlib.sha256(f"{source}/{document_id}".encode()).hexdigest(), 16) % EVALUATION_SHARE == 0


def in_part(source: str, document_id: str, part: Part) -> bool:
    """Whether a document of `source` belongs to `part`. Train and evaluation are disjoint and exhaust all."""
    return part is Part.all or is_evaluation(source, document_id) == (part is Part.evaluation)


def drawing_order(source: str, documents: Iterable[Document], seed: int) -> list[Document]:
    """Return the documents in the pseudo-random order in which a sample takes them.

    The order is by SHA-256 of `seed/source/document id`: it depends neither on the order of reading nor on
    a random generator's version, and a smaller sample is the beginning of a larger one.
    """

    def rank(document: Document) -> tuple[str, str]:
        return hashlib.sha256(f"{seed}/{source}/{document.id}".encode()).hexdigest(), document.id

    return sorted(documents, key=rank)
