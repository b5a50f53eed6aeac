"""Datasets of the Hugging Face Hub, streamed with the `datasets` library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from sae_match.config.schema import DatasetConfig
from sae_match.errors import UserError
from sae_match.hub import explained
from sae_match.hub_errors import Repository, holds_token
from sae_match.text.documents import Document, Source
from sae_match.text.sources.rows import row_texts, rows_to_documents, text_column

if TYPE_CHECKING:
    from datasets import IterableDataset

_log = logging.getLogger(__name__)

MIN_POOL, POOL_FACTOR = 1_000, 10
ELSEWHERE = "use an embedded text (dataset=wiki), or a local file (dataset.source=local dataset.path=FILE)"
_LIBRARIES_OF_THE_HUB = frozenset({"datasets", "huggingface_hub", "httpx", "httpx2", "requests", "aiohttp", "fsspec"})


def open_hub(cfg: DatasetConfig) -> Source:
    """Open a hub dataset; nothing is downloaded before its documents are read.

    The documents are the first `cfg.pool` of the stream (by default `max(1000, 10 * cfg.documents)`; articles, where
    lines are joined), in the stream's own order. The sample is drawn from them by `drawing_order`: it is the same on
    every machine as long as the revision is, but it is not a sample of the whole split. Tokens made from a branch
    (revision null) stay what they were when first made, also if the branch moves; the commit is kept with them.

    Raises UserError where the configuration names no repository, or asks for every document.
    """
    if not cfg.repo_id:
        raise UserError("dataset.source=hub needs dataset.repo_id, such as Salesforce/wikitext.")
    if cfg.documents == 0:
        raise UserError(
            f"dataset.documents=0 (all of them) is not offered for hub datasets ({cfg.repo_id}), which are streamed.\n"
            "Set dataset.documents to a number."
        )
    pool = cfg.pool or max(MIN_POOL, POOL_FACTOR * cfg.documents)
    identity = {
        "repo_id": cfg.repo_id,
        "revision": cfg.revision or "main",
        "config_name": cfg.config_name or "",
        "split": cfg.split,
        "column": cfg.column or "",
        "join_articles": str(cfg.join_articles),
        "pool": str(pool),
    }
    if cfg.data_files:
        identity["data_files"] = cfg.data_files
    note = f"the first {pool} documents of {cfg.repo_id}, split {cfg.split}"
    facts: dict[str, str] = {}
    advice = f", or raise dataset.pool (now {pool}), the number of documents that are looked at"
    return Source(f"hub/{cfg.repo_id}", identity, lambda: _read(cfg, pool, facts), note, facts, advice)


def _read(cfg: DatasetConfig, pool: int, facts: dict[str, str]) -> Iterator[Document]:
    where = f"Hub dataset {cfg.repo_id}, split {cfg.split}"
    repository = Repository(str(cfg.repo_id), cfg.revision, "dataset", ELSEWHERE)
    _log.info("%s: streaming the first %s documents", where, pool)
    try:
        with explained(repository):
            dataset = _stream(cfg, facts)
            column = text_column(_columns(dataset, where), cfg.column, where)
            texts = row_texts(dataset.select_columns([column]), column, where)
            yield from islice(rows_to_documents(texts, str(cfg.repo_id), cfg.join_articles), pool)
    except UserError:
        raise
    except Exception as error:
        if not _is_from_the_hub(error):
            raise
        raise UserError(_advice(cfg, error)) from (None if holds_token(error) else error)


def _stream(cfg: DatasetConfig, facts: dict[str, str]) -> IterableDataset:
    """Open the stream at one commit; where the repository is still a loading script, `cfg.fallback_files`."""
    load = _load_dataset()
    if cfg.data_files and cfg.data_files.startswith("hf://"):
        facts["files"] = cfg.data_files
        return load("parquet", data_files=cfg.data_files, split=cfg.split, streaming=True)
    facts["commit"] = _commit(cfg)
    options = {"split": cfg.split, "revision": facts["commit"], "streaming": True}
    if cfg.data_files:
        options["data_files"] = facts["files"] = cfg.data_files
    try:
        return load(cfg.repo_id, cfg.config_name, **options)
    except RuntimeError as error:
        if "script" not in str(error).lower() or not cfg.fallback_files or cfg.revision:
            raise
        _log.warning(
            "%s at commit %s is a loading script, which is not run; reading %s instead (dataset.fallback_files)",
            cfg.repo_id, facts["commit"], cfg.fallback_files,
        )  # fmt: skip
        facts["files"] = cfg.fallback_files
        return load("parquet", data_files=cfg.fallback_files, split=cfg.split, streaming=True)


def _commit(cfg: DatasetConfig) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(str(cfg.repo_id), revision=cfg.revision).sha)


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
    reason = type(error).__name__ + ("" if holds_token(error) else f": {error}".rstrip())
    if "script" in reason.lower():
        advice = (
            "It is a loading script, and scripts are not run: set dataset.revision=refs/convert/parquet (the hub's own "
            "conversion, where there is one), or dataset.data_files to its parquet files."
        )
    else:
        advice = "Check dataset.config_name, dataset.split, dataset.data_files and dataset.revision."
    return f"The hub dataset {name} cannot be read.\n{reason[:600]}\n{advice}"
