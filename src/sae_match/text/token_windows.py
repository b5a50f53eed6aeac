"""Token windows: what models read instead of text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_match.errors import UserError


@dataclass(frozen=True)
class TokenWindows:
    """Fixed-length windows of token ids, in document order.

    ids: int64 [windows, tokens]. document: int64 [windows], the 0-based, contiguous, non-decreasing number of the
    document that each window is from. titles: one per document. key: SHA-256 of ids and document, so equal
    windows have equal keys wherever they came from. info: the recipe and the counts, JSON-compatible.
    """

    ids: Int[Tensor, "windows tokens"]
    document: Int[Tensor, "windows"]
    titles: list[str]
    key: str
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        ids: Int[Tensor, "windows tokens"],
        document: Int[Tensor, "windows"],
        titles: Sequence[str],
        info: dict[str, Any],
    ) -> TokenWindows:
        """Check the invariants, compute the key and return the windows.

        Raises ValueError where shapes, dtypes or the numbering of documents are not as the class says.
        """
        if ids.ndim != 2 or ids.dtype != torch.int64 or document.dtype != torch.int64:
            raise ValueError(f"ids must be int64 [windows, tokens], not {ids.dtype} {tuple(ids.shape)}")
        expected = torch.arange(len(titles))
        if document.shape != ids.shape[:1] or not torch.equal(torch.unique_consecutive(document), expected):
            raise ValueError(f"document must number {len(titles)} documents from 0, in order, one entry per window")
        return cls(ids, document, list(titles), windows_key(ids, document), info)

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return self.ids.shape[0]

    @property
    def window_tokens(self) -> int:
        """Tokens per window, BOS included."""
        return self.ids.shape[1]

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.titles)

    def leading(self, documents: int, windows_per_document: int) -> Bool[Tensor, "windows"]:
        """Mark the first windows of the first documents (0 = all of them, either way)."""
        _, counts = torch.unique_consecutive(self.document, return_counts=True)
        starts = counts.cumsum(0) - counts
        position = torch.arange(self.n_windows) - starts[self.document]
        mark = torch.ones(self.n_windows, dtype=torch.bool)
        if documents:
            mark &= self.document < documents
        return mark & (position < windows_per_document) if windows_per_document else mark

    def subset(self, keep: Bool[Tensor, "windows"]) -> TokenWindows:
        """The marked windows, their documents numbered anew."""
        kept, document = torch.unique_consecutive(self.document[keep], return_inverse=True)
        titles = [self.titles[i] for i in kept.tolist()]
        return TokenWindows.build(self.ids[keep], document, titles, self.info | {"subset_of": self.key})

    def first_documents(self, n: int) -> TokenWindows:
        """Return the windows of the first `n` documents (0 = all).

        Raises UserError where `n` is negative or exceeds the number of documents.
        """
        if not 0 <= n <= self.n_documents:
            raise UserError(f"The first {n} documents were asked for, but there are {self.n_documents}.")
        if n in (0, self.n_documents):
            return self
        keep = self.document < n
        info = self.info | {"first_documents": n}
        return TokenWindows.build(self.ids[keep], self.document[keep], self.titles[:n], info)

    @classmethod
    def concatenate(cls, parts: Sequence[TokenWindows]) -> TokenWindows:
        """Join windows of several datasets, renumbering the documents; windows keep their order.

        Raises UserError where `parts` is empty or the windows differ in length.
        """
        lengths = {part.window_tokens for part in parts}
        if len(lengths) != 1:
            raise UserError(f"Only windows of one length can be joined, not {sorted(lengths) or 'none at all'}.")
        offsets = [sum(part.n_documents for part in parts[:i]) for i in range(len(parts))]
        document = torch.cat([part.document + offset for part, offset in zip(parts, offsets, strict=True)])
        titles = [title for part in parts for title in part.titles]
        info = {"parts": [part.info for part in parts]}
        return cls.build(torch.cat([part.ids for part in parts]), document, titles, info)


def windows_key(ids: Int[Tensor, "windows tokens"], document: Int[Tensor, "windows"]) -> str:
    """SHA-256, in hexadecimal, of the shape, the ids and the document numbers."""
    digest = hashlib.sha256(f"{tuple(ids.shape)}".encode())
    for tensor in (ids, document):
        digest.update(tensor.contiguous().numpy().astype("<i8", copy=False).tobytes())
    return digest.hexdigest()
