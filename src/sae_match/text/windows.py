"""From a text to token windows, which models read instead of text: sample, tokenize, cut, and keep the result."""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_match.content import content_key
from sae_match.entries import Payload
from sae_match.errors import UserError
from sae_match.store import Store
from sae_match.text.source import Document, Part, TextSource
from sae_match.text.stretches import STRETCH_VERSION, Reader, cut_stretches
from sae_match.text.tokenization import Bos, bos_token, cut_windows

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenWindows:
    """Fixed-length windows of token ids, in document order.

    Attributes:
        ids: int64 [windows, tokens].
        document: int64 [windows], the 0-based, contiguous, non-decreasing number of the document of each window.
        titles: one per document.
        key: SHA-256 of ids and document, so equal windows have equal keys wherever they came from.
        info: the recipe and the counts, JSON-compatible.
        ends: of windows over the characters of another tokenizer's how many of those are read after each token, as in
            `text.stretches.Rows`.
    """

    ids: Int[Tensor, "windows tokens"]
    document: Int[Tensor, "windows"]
    titles: list[str]
    key: str
    info: dict[str, Any] = field(default_factory=dict)
    ends: Int[Tensor, "windows tokens"] | None = None

    @classmethod
    def build(
        cls,
        ids: Int[Tensor, "windows tokens"],
        document: Int[Tensor, "windows"],
        titles: Sequence[str],
        info: dict[str, Any],
        ends: Int[Tensor, "windows tokens"] | None = None,
    ) -> TokenWindows:
        """Check the invariants, compute the key and return the windows.

        Raises:
            ValueError: shapes, dtypes or the numbering of documents are not as the class says.
        """
        if ids.ndim != 2 or ids.dtype != torch.int64 or document.dtype != torch.int64:
            raise ValueError(f"ids must be int64 [windows, tokens], not {ids.dtype} {tuple(ids.shape)}")
        expected = torch.arange(len(titles))
        if document.shape != ids.shape[:1] or not torch.equal(torch.unique_consecutive(document), expected):
            raise ValueError(f"document must number {len(titles)} documents from 0, in order, one entry per window")
        digest = hashlib.sha256(f"{tuple(ids.shape)}".encode())
        for tensor in (ids, document):
            digest.update(tensor.contiguous().numpy().astype("<i8", copy=False).data)
        return cls(ids, document, list(titles), digest.hexdigest(), info, ends)

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
        ends = None if self.ends is None else self.ends[keep]
        return TokenWindows.build(self.ids[keep], document, titles, self.info | {"subset_of": self.key}, ends)

    @classmethod
    def concatenate(cls, parts: Sequence[TokenWindows]) -> TokenWindows:
        """Join windows of several datasets, renumbering the documents; windows keep their order.

        Raises:
            UserError: `parts` is empty or the windows differ in length.
        """
        lengths = {part.window_tokens for part in parts}
        if len(lengths) != 1:
            raise UserError(f"Only windows of one length can be joined, not {sorted(lengths) or 'none at all'}.")
        offsets = [sum(part.n_documents for part in parts[:i]) for i in range(len(parts))]
        document = torch.cat([part.document + offset for part, offset in zip(parts, offsets, strict=True)])
        titles = [title for part in parts for title in part.titles]
        info = {"parts": [part.info for part in parts]}
        return cls.build(torch.cat([part.ids for part in parts]), document, titles, info)


def load_windows(
    source: TextSource, tokenizer: Any, store: Store, bos: Bos = "auto", over: Reader | None = None
) -> TokenWindows:
    """Return the token windows of a text, building and storing them on first use.

    The documents of `source.part` are drawn in a fixed pseudo-random order; those shorter than one window are passed
    over and counted; each of the first `source.documents` of the rest (0 = all) is cut from its start into
    `source.windows_per_document` windows (0 = as many as fit; fewer where it is shorter) of `source.window_tokens`
    tokens. Every window begins with BOS where `bos` calls for one, and a document's tokens follow on from window
    to window without overlap. One document at a time is in memory.

    Args:
        over: another tokenizer, which cuts the documents into windows; `tokenizer` then reads the characters of each
            (`text.stretches`).

    Raises:
        UserError: the source cannot be read or holds too few documents, or a tokenizer does not say which characters
            its tokens stand for, where `over` is given.
    """
    reader = Reader(tokenizer, bos_token(tokenizer, bos))
    recipe = _recipe(source, reader, over)

    def build() -> Payload:
        windows = _build(source, reader, over, recipe)
        names = ("ids", "document", "titles", "info", *(() if over is None else ("ends",)))
        values = {name: getattr(windows, name) for name in names}
        return values | {"windows_key": windows.key}

    windows = store.get_or("tokens", recipe, build, _from_payload)
    _log.info("%s: %s documents, %s windows", source.label, windows.n_documents, windows.n_windows)
    return windows


def find_windows(source: TextSource, tokenizer: Any, store: Store, bos: Bos = "auto") -> TokenWindows | None:
    """The windows that `load_windows` would find in the store, or None where it would have to build them.

    Raises:
        UserError: the source is not as configured.
    """
    payload = store.get("tokens", _recipe(source, Reader(tokenizer, bos_token(tokenizer, bos)), None))
    return None if payload is None else _from_payload(payload)


def load_fit_windows(
    source: TextSource,
    evaluated: TokenWindows,
    documents: int | None,
    tokenizer: Any,
    store: Store,
    bos: Bos = "auto",
    over: Reader | None = None,
) -> TokenWindows:
    """Windows of documents of the same source, none of which is evaluated: what data-driven controls are fitted on.

    Where the evaluation uses one part of the source (`part=evaluation`, as the embedded texts do), the other part;
    where it uses all (hub and local texts), the documents that follow the evaluated ones in the order of drawing.

    Args:
        source: the evaluated text.
        evaluated: its windows.
        documents: how many; None = as many as are evaluated.
        over: as in `load_windows`.

    Raises:
        UserError: there are not so many, or the text has changed since `evaluated` was cut.
    """
    wanted = source.documents if documents is None else documents
    try:
        if source.part != "all":
            other: Part = "train" if source.part == "evaluation" else "evaluation"
            return load_windows(source.resized(wanted, other), tokenizer, store, bos, over)
        more = load_windows(source.resized(source.documents + wanted), tokenizer, store, bos, over)
    except UserError as error:
        raise UserError(
            f"{error}\nThe controls correlation and linear_map are fitted on {wanted} documents that are not evaluated "
            "(evaluation.fit_documents); the documents above are to be as many, or those and the evaluated ones."
        ) from error
    n = evaluated.n_windows
    if not (torch.equal(more.ids[:n], evaluated.ids) and torch.equal(more.document[:n], evaluated.document)):
        raise UserError(
            "the text to fit controls on does not begin with the evaluated documents, so it may contain them: the "
            "dataset has changed since it was cut. Pin dataset.revision, or use another paths.cache_dir."
        )
    return more.subset(more.document >= evaluated.n_documents)


def _recipe(source: TextSource, reader: Reader, over: Reader | None) -> dict[str, Any]:
    """Everything that the windows depend on, JSON-compatible; the text's short name is only a label."""
    found = {**source.key(), **reader.facts}
    return found if over is None else found | {"over": over.facts | {"version": STRETCH_VERSION}}


def _from_payload(payload: Payload) -> TokenWindows:
    ids, document = (torch.from_numpy(payload[name]) for name in ("ids", "document"))
    ends = torch.from_numpy(payload["ends"]) if "ends" in payload else None
    windows = TokenWindows.build(ids, document, payload["titles"], payload["info"], ends)
    if windows.key != payload["windows_key"]:
        raise ValueError("the windows are not those that were stored")
    return windows


def _build(source: TextSource, reader: Reader, over: Reader | None, recipe: dict[str, Any]) -> TokenWindows:
    def cut(document: Document) -> tuple[Tensor, ...]:
        text, how = document.text, (source.window_tokens, source.windows_per_document)
        if over is not None:
            return cut_stretches(over, reader, text, *how)
        return (cut_windows(reader.tokenizer, text, *how, reader.bos),)

    facts: dict[str, str] = {}
    pool, short = 0, list[tuple[int, int]]()
    sample: list[tuple[int, int, str, tuple[Tensor, ...]]] = []  # a heap: at its top the document that is drawn last
    for document in source.read(facts):
        if not source.holds(document):
            continue
        pool += 1
        place = (-source.rank(document), -pool)
        full = source.documents and len(sample) == source.documents
        if full and place < sample[0][:2]:
            continue
        rows = cut(document)
        if not len(rows[0]):
            short.append(place)
        elif full:
            heapq.heapreplace(sample, (*place, document.title, rows))
        else:
            heapq.heappush(sample, (*place, document.title, rows))
    found = len(sample)
    if found == 0 or found < source.documents:
        raise UserError(_too_few(source, pool, found))
    last = sample[0][:2]
    sample.sort(reverse=True)
    ids, *ends = (torch.cat(rows) for rows in zip(*(rows for *_, rows in sample), strict=True))
    document_of = torch.repeat_interleave(torch.tensor([len(rows[0]) for *_, rows in sample]))
    info = {
        "recipe": recipe,
        "recipe_key": content_key(recipe),
        "note": source.note(),
        "facts": facts,
        "pool_documents": pool,
        "too_short_documents": sum(place > last for place in short) if source.documents else len(short),
        "documents": found,
        "windows": len(ids),
        "tokens": ids.numel(),
    }
    return TokenWindows.build(ids, document_of, [title for _, _, title, _ in sample], info, *ends)


def _too_few(source: TextSource, pool: int, found: int) -> str:
    wanted = f"{source.documents} were asked for" if source.documents else "at least one is needed"
    advice = f"Lower dataset.window_tokens (now {source.window_tokens})"
    if found:
        advice += f", or dataset.documents to {found} (0 = all that are long enough)"
    if source.part != "all":
        advice += ", or use dataset.part=all"
    return (
        f"{source.label}, part {source.part}: {found} of {pool} documents have at least "
        f"{source.window_tokens} tokens, but {wanted}.\n{advice}{source.advice}."
    )
