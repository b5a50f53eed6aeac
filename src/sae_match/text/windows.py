"""From a dataset's configuration to token windows: sample, tokenize, cut, and keep the result."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sae_match.config.schema import Bos, DatasetConfig, Part
from sae_match.content import content_key
from sae_match.entries import Payload
from sae_match.errors import UserError
from sae_match.store import Store
from sae_match.text.documents import Document, Source, drawing_order, in_part
from sae_match.text.sources import open_source
from sae_match.text.token_windows import TokenWindows
from sae_match.text.tokenization import bos_token, encode, tokenizer_identity

_log = logging.getLogger(__name__)


def load_windows(cfg: DatasetConfig, tokenizer: Any, store: Store, bos: Bos = Bos.auto) -> TokenWindows:
    """Return the token windows of a dataset, building and storing them on first use.

    The documents of `cfg.part` are drawn in a fixed pseudo-random order; those shorter than one window are passed
    over and counted; each of the first `cfg.documents` of the rest (0 = all) is cut from its start into
    `cfg.windows_per_document` windows (0 = as many as fit; fewer where it is shorter) of `cfg.window_tokens`
    tokens. Every window begins with BOS where `bos` calls for one, and a document's tokens follow on from window
    to window without overlap.

    Raises UserError where the source cannot be read or holds too few documents.
    """
    _check(cfg)
    source = open_source(cfg)
    first = bos_token(tokenizer, bos)
    recipe = make_recipe(cfg, source, tokenizer, first)
    windows = store.get_or(
        "tokens", recipe, lambda: to_payload(_build(cfg, source, tokenizer, first, recipe)), from_payload
    )
    _log.info("%s: %s documents, %s windows", source.name, windows.n_documents, windows.n_windows)
    return windows


def find_windows(cfg: DatasetConfig, tokenizer: Any, store: Store, bos: Bos = Bos.auto) -> TokenWindows | None:
    """The windows that `load_windows` would find in the store, or None where it would have to build them.

    Raises UserError where the source is not as configured.
    """
    _check(cfg)
    recipe = make_recipe(cfg, open_source(cfg), tokenizer, bos_token(tokenizer, bos))
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


def make_recipe(cfg: DatasetConfig, source: Source, tokenizer: Any, bos: int | None) -> dict[str, Any]:
    """Everything that the windows depend on, JSON-compatible; the dataset's short name is only a label."""
    return {
        "version": 1,
        "source": source.name,
        "content": source.identity,
        "part": Part(cfg.part).value,
        "documents": cfg.documents,
        "window_tokens": cfg.window_tokens,
        "windows_per_document": cfg.windows_per_document,
        "seed": cfg.seed,
        "tokenizer": tokenizer_identity(tokenizer),
        "bos": bos,
    }


def _check(cfg: DatasetConfig) -> None:
    for name, least in (("window_tokens", 2), ("documents", 0), ("windows_per_document", 0)):
        if getattr(cfg, name) < least:
            raise UserError(f"dataset.{name} must be at least {least}, not {getattr(cfg, name)}.")


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


def _build(cfg: DatasetConfig, source: Source, tokenizer: Any, bos: int | None, recipe: dict[str, Any]) -> TokenWindows:
    part = Part(cfg.part)
    pool = [document for document in source.read() if in_part(source.name, document.id, part)]
    sample = _draw(cfg, drawing_order(source.name, pool, cfg.seed), tokenizer, bos)
    found = len(sample.titles)
    if found == 0 or found < cfg.documents:
        raise UserError(_too_few(cfg, source, len(pool), found))
    ids = torch.tensor(sample.rows, dtype=torch.int64)
    info = {
        "recipe": recipe,
        "recipe_key": content_key(recipe),
        "note": source.note,
        "facts": source.facts,
        "pool_documents": len(pool),
        "too_short_documents": sample.too_short,
        "documents": found,
        "windows": len(sample.rows),
        "tokens": ids.numel(),
    }
    return TokenWindows.build(ids, torch.tensor(sample.document, dtype=torch.int64), sample.titles, info)


def _draw(cfg: DatasetConfig, ordered: Sequence[Document], tokenizer: Any, bos: int | None) -> _Sample:
    """Tokenize documents in drawing order until the sample is full."""
    sample = _Sample()
    for document in ordered:
        if cfg.documents and len(sample.titles) == cfg.documents:
            break
        rows = cut(encode(tokenizer, document.text), cfg.window_tokens, cfg.windows_per_document, bos)
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


def _too_few(cfg: DatasetConfig, source: Source, pool: int, found: int) -> str:
    wanted = f"{cfg.documents} were asked for" if cfg.documents else "at least one is needed"
    advice = f"Lower dataset.window_tokens (now {cfg.window_tokens})"
    if found:
        advice += f", or dataset.documents to {found} (0 = all that are long enough)"
    if Part(cfg.part) is not Part.all:
        advice += ", or use dataset.part=all"
    advice += source.advice
    return (
        f"{source.name}, part {Part(cfg.part).value}: {found} of {pool} documents have at least "
        f"{cfg.window_tokens} tokens, but {wanted}.\n{advice}."
    )
