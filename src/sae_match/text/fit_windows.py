"""Other text than is evaluated, of the same source: what data-driven controls are fitted on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sae_match.config.schema import Bos, DatasetConfig, DatasetSource, Part
from sae_match.errors import UserError
from sae_match.store import Store
from sae_match.text.sources.hub import MIN_POOL, POOL_FACTOR
from sae_match.text.token_windows import TokenWindows
from sae_match.text.windows import load_windows


def load_fit_windows(
    cfg: DatasetConfig,
    evaluated: TokenWindows,
    documents: int | None,
    tokenizer: Any,
    store: Store,
    bos: Bos = Bos.auto,
) -> TokenWindows:
    """Windows of documents of the same source, none of which is evaluated.

    Where the evaluation uses one part of the source (`part=evaluation`, as the embedded texts do), the other part;
    where it uses all (hub and local texts), the documents that follow the evaluated ones in the order of drawing.

    Args:
        cfg: the evaluated dataset.
        evaluated: its windows.
        documents: how many; None = as many as are evaluated.

    Raises:
        UserError: there are not so many.
    """
    wanted = cfg.documents if documents is None else documents
    if cfg.source is DatasetSource.hub:
        # The default pool grows with the sample: another pool would draw other documents.
        cfg = replace(cfg, pool=cfg.pool or max(MIN_POOL, POOL_FACTOR * cfg.documents))
    try:
        if cfg.part is not Part.all:
            other = Part.train if cfg.part is Part.evaluation else Part.evaluation
            return load_windows(replace(cfg, part=other, documents=wanted), tokenizer, store, bos)
        more = load_windows(replace(cfg, documents=cfg.documents + wanted), tokenizer, store, bos)
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
