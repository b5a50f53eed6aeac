"""Datasets of the Hugging Face Hub, streamed with the `datasets` library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from sae_match.config.schema import DatasetConfig
from sae_match.errors import UserError
from sae_match.text.documents import Document, Source
from sae_match.text.sources.rows import row_texts, rows_to_documents, text_column

if TYPE_CHECKING:
    from datasets import IterableDataset

_log = logging.getLogger(__name__)

MIN_POOL, POOL_FACTOR = 1_000, 10
PARQUET_FALLBACKS = {
    # The main branch was a loading script, which datasets >= 4 refuses, until 2025-12.
    "Skylion007/openwebtext": "hf://datasets/Skylion007/openwebtext@refs%2Fpr%2F18/data/*.parquet",
}
_LIBRARIES_OF_THE_HUB = frozenset({"datasets", "huggingface_hub", "httpx", "httpx2", "requests", "aiohttp", "fsspec"})


def open_hub(cfg: DatasetConfig) -> Source:
    """Open a hub dataset; nothing is downloaded before its documents are read.

    The documents are the first `max(1000, 10 * cfg.documents)` of the stream (articles, where lines are joined), in
    the stream's own order: the sample drawn from them is deterministic, but it is not a sample of the whole split.
    Tokens made from a branch (revision null) stay what they were when first made, also if the branch moves.

    Raises UserError where the configuration names no repository, or asks for every document.
    """
    if not cfg.repo_id:
        raise UserError("dataset.source=hub needs dataset.repo_id, such as Salesforce/wikitext.")
    if cfg.documents == 0:
        raise UserError(
            f"dataset.documents=0 (all of them) is not offered for hub datasets ({cfg.repo_id}), which are streamed.\n"
            "Set dataset.documents to a number."
        )
    pool = max(MIN_POOL, POOL_FACTOR * cfg.documents)
    identity = {
        "repo_id": cfg.repo_id,
        "revision": cfg.revision or "main",
        "config_name": cfg.config_name or "",
        "split": cfg.split,
        "column": cfg.column or "",
        "join_articles": str(cfg.join_articles),
        "pool": str(pool),
    }
    note = f"the first {pool} documents of {cfg.repo_id}, split {cfg.split}"
    return Source(f"hub/{cfg.repo_id}", identity, lambda: _read(cfg, pool), note=note)


def _read(cfg: DatasetConfig, pool: int) -> Iterator[Document]:
    where = f"Hub dataset {cfg.repo_id}, split {cfg.split}"
    _log.info("%s: streaming the first %s documents", where, pool)
    try:
        dataset = _stream(cfg)
        column = text_column(_columns(dataset, where), cfg.column, where)
        texts = row_texts(dataset.select_columns([column]), column, where)
        yield from islice(rows_to_documents(texts, str(cfg.repo_id), cfg.join_articles), pool)
    except UserError:
        raise
    except Exception as error:
        if not _is_from_the_hub(error):
            raise
        raise UserError(_advice(cfg, error)) from error


def _stream(cfg: DatasetConfig) -> IterableDataset:
    """Open the stream; where the repository is still a loading script, its known parquet revision."""
    load = _load_dataset()
    try:
        return load(cfg.repo_id, cfg.config_name, split=cfg.split, revision=cfg.revision, streaming=True)
    except RuntimeError as error:
        fallback = PARQUET_FALLBACKS.get(str(cfg.repo_id))
        if "script" not in str(error).lower() or not fallback or cfg.revision:
            raise
        _log.warning("%s is a loading script (%s); reading %s instead.", cfg.repo_id, error, fallback)
        return load("parquet", data_files=fallback, split=cfg.split, streaming=True)


def _load_dataset() -> Any:
    try:
        from datasets import load_dataset  # Slow to import, and wanted only when the cache is cold.
    except ImportError as error:
        raise UserError("dataset.source=hub needs the datasets library: `pip install datasets`.") from error
    return load_dataset


def _columns(dataset: IterableDataset, where: str) -> list[str]:
    if dataset.column_names is not None:
        return list(dataset.column_names)
    first = next(iter(dataset), None)  # Not every format declares its columns.
    if first is None:
        raise UserError(f"{where} is empty.")
    return list(first)


def _is_from_the_hub(error: Exception) -> bool:
    """Whether an error says that the hub or the network failed, or that the repository is not as configured."""
    library = type(error).__module__.split(".")[0]
    # datasets reports unknown configurations and splits as ValueError, loading scripts as RuntimeError.
    return library in _LIBRARIES_OF_THE_HUB or isinstance(error, (OSError, ValueError, RuntimeError))


def _advice(cfg: DatasetConfig, error: Exception) -> str:
    name = f"{cfg.repo_id}, configuration {cfg.config_name}, revision {cfg.revision or 'main'}, split {cfg.split}"
    reason = f"{type(error).__name__}: {error}".strip()
    text = reason.lower()
    if "gated" in text or "401" in text or "403" in text:
        advice = "Accept its terms on the hub's page and log in (`hf auth login`, or set HF_TOKEN)."
    elif "script" in text:
        advice = "It is a loading script: set dataset.revision=refs/convert/parquet, or download it as parquet."
    elif isinstance(error, (ConnectionError, TimeoutError)) or "connect" in type(error).__name__.lower():
        advice = (
            "Check the network (and HF_HUB_OFFLINE), or use an embedded dataset (dataset=wiki), or a local file "
            "(dataset.source=local dataset.path=FILE)."
        )
    else:
        advice = "Check dataset.repo_id, dataset.config_name, dataset.revision and dataset.split."
    return f"The hub dataset {name} cannot be read.\n{reason[:600]}\n{advice}"
