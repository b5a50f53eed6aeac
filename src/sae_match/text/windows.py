"""From a text to token windows: sample, tokenize, cut, and keep the result."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sae_match.content import content_key
from sae_match.entries import Payload
from sae_match.errors import UserError
from sae_match.store import Store
from sae_match.text.source import Document, Part, TextSource, drawing_order, in_part
from sae_match.text.token_windows import TokenWindows
from sae_match.text.tokenization import Bos, bos_token, encode, tokenizer_identity

_log = logging.getLogger(__name__)


def load_windows(source: TextSource, tokenizer: Any, store: Store, bos: Bos = "auto") -> TokenWindows:
    """Return the token windows of a text, building and storing them on first use.

    The documents of `source.part` are drawn in a fixed pseudo-random order; those shorter than one window are passed
    over and counted; each of the first `source.documents` of the rest (0 = all) is cut from its start into
    `source.windows_per_document` windows (0 = as many as fit; fewer where it is shorter) of `source.window_tokens`
    tokens. Every window begins with BOS where `bos` calls for one, and a document's tokens follow on from window
    to window without overlap.

    Raises UserError where the source cannot be read or holds too few documents.
    """
    first = bos_token(tokenizer, bos)
    recipe = make_recipe(source, tokenizer, first)
    windows = store.get_or("tokens", recipe, lambda: to_payload(_build(source, tokenizer, first, recipe)), from_payload)
    _log.info("%s: %s documents, %s windows", source.label, windows.n_documents, windows.n_windows)
    return windows


def find_windows(source: TextSource, tokenizer: Any, store: Store, bos: Bos = "auto") -> TokenWindows | None:
    """The windows that `load_windows` would find in the store, or None where it would have to build them.

    Raises UserError where the source is not as configured.
    """
    recipe = make_recipe(source, tokenizer, bos_token(tokenizer, bos))
    payload = store.get("tokens", recipe)
    return None if payload is None else from_payload(payload)


def to_payload(windows: TokenWindows) -> Payload:
    """Windows as the store keeps them."""
    return {
        "ids": windows.ids,
        "document": windows.document,
        "titles": windows.titles,
        "info": windows.info,
        "windows_key": windows.key,
    }


def from_payload(payload: Payload) -> TokenWindows:
    """Windows from the store.

    Raises:
        ValueError, KeyError, TypeError: they are not what was stored.
    """
    ids, document = (torch.from_numpy(payload[name]) for name in ("ids", "document"))
    windows = TokenWindows.build(ids, document, payload["titles"], payload["info"])
    if windows.key != payload["windows_key"]:
        raise ValueError("the windows are not those that were stored")
    return windows


def load_fit_windows(
    source: TextSource,
    evaluated: TokenWindows,
    documents: int | None,
    tokenizer: Any,
    store: Store,
    bos: Bos = "auto",
) -> TokenWindows:
    """Windows of documents of the same source, none of which is evaluated: what data-driven controls are fitted on.

    Where the evaluation uses one part of the source (`part=evaluation`, as the embedded texts do), the other part;
    where it uses all (hub and local texts), the documents that follow the evaluated ones in the order of drawing.

    Args:
        source: the evaluated text.
        evaluated: its windows.
        documents: how many; None = as many as are evaluated.

    Raises:
        UserError: there are not so many.
    """
    wanted = source.documents if documents is None else documents
    try:
        if source.part != "all":
            other: Part = "train" if source.part == "evaluation" else "evaluation"
            return load_windows(source.resized(wanted, other), tokenizer, store, bos)
        more = load_windows(source.resized(source.documents + wanted), tokenizer, store, bos)
    except UserError as error:
        raise UserError(
            f"{error}\nThe controls correlation and linear_map are fitted on {wanted} documents that are not evaluated "
            "(evaluation.fit_documents); the documents above are to be as many, or those and the evaluated ones."
        ) from error
    return _beyond(more, evaluated)


def _beyond(more: TokenWindows, evaluated: TokenWindows) -> TokenWindows:
    """The windows after the evaluated ones, with which `more` must begin."""
    n = evaluated.n_windows
    if not (torch.equal(more.ids[:n], evaluated.ids) and torch.equal(more.document[:n], evaluated.document)):
        raise UserError(
            "the text to fit controls on does not begin with the evaluated documents, so it may contain them: the "
            "dataset has changed since it was cut. Pin dataset.revision, or use another paths.cache_dir."
        )
    return more.subset(more.document >= evaluated.n_documents)


def make_recipe(source: TextSource, tokenizer: Any, bos: int | None) -> dict[str, Any]:
    """Everything that the windows depend on, JSON-compatible; the text's short name is only a label."""
    return {**source.key(), "tokenizer": tokenizer_identity(tokenizer), "bos": bos}


@dataclass
class _Sample:
    """The windows cut so far and what was passed over."""

    rows: list[list[int]] = field(default_factory=list)
    document: list[int] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    too_short: int = 0

    def add(self, title: str, rows: Sequence[list[int]]) -> None:
        self.rows.extend(rows)
        self.document.extend([len(self.titles)] * len(rows))
        self.titles.append(title)


def _build(source: TextSource, tokenizer: Any, bos: int | None, recipe: dict[str, Any]) -> TokenWindows:
    facts: dict[str, str] = {}
    pool = [document for document in source.read(facts) if in_part(source.label, document.id, source.part)]
    sample = _draw(source, drawing_order(source.label, pool, source.seed), tokenizer, bos)
    found = len(sample.titles)
    if found == 0 or found < source.documents:
        raise UserError(_too_few(source, len(pool), found))
    ids = torch.tensor(sample.rows, dtype=torch.int64)
    info = {
        "recipe": recipe,
        "recipe_key": content_key(recipe),
        "note": source.note(),
        "facts": facts,
        "pool_documents": len(pool),
        "too_short_documents": sample.too_short,
        "documents": found,
        "windows": len(sample.rows),
        "tokens": ids.numel(),
    }
    return TokenWindows.build(ids, torch.tensor(sample.document, dtype=torch.int64), sample.titles, info)


def _draw(source: TextSource, ordered: Sequence[Document], tokenizer: Any, bos: int | None) -> _Sample:
    """Tokenize documents in drawing order until the sample is full."""
    sample = _Sample()
    for document in ordered:
        if source.documents and len(sample.titles) == source.documents:
            break
        rows = cut(encode(tokenizer, document.text), source.window_tokens, source.windows_per_document, bos)
        if rows:
            sample.add(document.title, rows)
        else:
            sample.too_short += 1
    return sample


def cut(ids: Sequence[int], window_tokens: int, limit: int, bos: int | None) -> list[list[int]]:
    """Cut a document's ids from the start into full windows of `window_tokens`, at most `limit` (0 = no limit).

    Where `bos` is given every window begins with it and holds one token fewer of the document.
    """
    head = [] if bos is None else [bos]
    body = window_tokens - len(head)
    count = len(ids) // body
    if limit:
        count = min(count, limit)
    return [head + list(ids[i * body : (i + 1) * body]) for i in range(count)]


def _too_few(source: TextSource, pool: int, found: int) -> str:
    wanted = f"{source.documents} were asked for" if source.documents else "at least one is needed"
    advice = f"Lower dataset.window_tokens (now {source.window_tokens})"
    if found:
        advice += f", or dataset.documents to {found} (0 = all that are long enough)"
    if source.part != "all":
        advice += ", or use dataset.part=all"
    advice += source.advice
    return (
        f"{source.label}, part {source.part}: {found} of {pool} documents have at least "
        f"{source.window_tokens} tokens, but {wanted}.\n{advice}."
    )
