"""The text that a job reads: whether it is there or may be read, and how much of it, before anything is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from sae_match.config.schema import Config, DatasetConfig, DatasetSource
from sae_match.errors import UserError
from sae_match.experiment.problems import noting
from sae_match.files import format_size
from sae_match.hub_errors import Repository
from sae_match.hub_lookup import HubFile, Lookup
from sae_match.store import Store
from sae_match.text import TokenWindows
from sae_match.text.sources import open_source
from sae_match.text.sources.hub import ELSEWHERE
from sae_match.text.windows import find_windows

DATA_SUFFIXES = (
    ".parquet",
    ".arrow",
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".txt",
    ".gz",
    ".zst",
    ".bz2",
    ".xz",
    ".zip",
    ".tar",
)


@dataclass(frozen=True)
class PlannedText:
    """A job's text.

    Attributes:
        windows: windows with activations; None where that is not known before documents are cut.
        splice_windows: those with token losses.
        documents: at most.
        note: where it comes from, in words.
    """

    windows: int | None
    splice_windows: int | None
    documents: int | None
    note: str


def plan_text(cfg: Config, lookup: Lookup, tokenizer: Path | None, problems: list[str]) -> PlannedText:
    """Find the text; whatever is wrong goes into `problems`.

    Args:
        tokenizer: directory of the model's tokenizer, where it is on this machine.
    """
    note = ""
    with noting(problems):
        source = open_source(cfg.dataset)
        note = source.note
        windows = _materialised(cfg, tokenizer)
        if windows is not None:
            keep = windows.leading(cfg.evaluation.splice_documents, cfg.evaluation.splice_windows_per_document)
            note += "; already cut into windows, in the cache"
            return PlannedText(windows.n_windows, int(keep.sum()), windows.n_documents, note)
        if cfg.dataset.source is DatasetSource.hub:
            note += f"; {_on_hub(cfg.dataset, lookup)}"
    return PlannedText(*at_most(cfg), note)


def at_most(cfg: Config) -> tuple[int | None, int | None, int | None]:
    """Most windows, windows with token losses, and documents that the configuration allows; None = no limit."""
    documents, each = cfg.dataset.documents, cfg.dataset.windows_per_document
    windows = documents * each if documents and each else None
    splice_documents = min(filter(None, (cfg.evaluation.splice_documents, documents)), default=0)
    splice_each = min(filter(None, (cfg.evaluation.splice_windows_per_document, each)), default=0)
    spliced = splice_documents * splice_each if splice_documents and splice_each else None
    return windows, spliced, documents or None


def _materialised(cfg: Config, tokenizer: Path | None) -> TokenWindows | None:
    """Windows that an earlier job has cut; only for the hub's texts, where that spares a download."""
    if tokenizer is None or cfg.dataset.source is not DatasetSource.hub:
        return None
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None  # its files are not all there yet
    return find_windows(cfg.dataset, loaded, Store(cfg.paths.cache_dir), cfg.model.bos)


def _on_hub(cfg: DatasetConfig, lookup: Lookup) -> str:
    """Check that the dataset may be read, by asking for one of its data files.

    Raises:
        UserError: unknown, gated or unreachable, or a loading script without data files.
    """
    if cfg.data_files and cfg.data_files.startswith("hf://"):
        return f"streamed from {cfg.data_files}, which is not looked up before"
    repository = Repository(str(cfg.repo_id), cfg.revision, "dataset", ELSEWHERE)
    data = data_files(lookup.listing(repository))
    if not data:
        if cfg.fallback_files and cfg.revision is None:
            return f"its main branch holds no data files, so {cfg.fallback_files} is read"
        raise UserError(
            f"{repository.label}: it holds no data files ({', '.join(DATA_SUFFIXES[:5])}...), so it is a loading "
            "script, which is not run. Set dataset.revision=refs/convert/parquet, or choose another dataset."
        )
    lookup.file(repository, data[0].filename)
    total = sum(file.size or 0 for file in data)
    return f"streamed: only its beginning is read, of {len(data)} files with {format_size(total)}"


def data_files(listing: list[HubFile]) -> list[HubFile]:
    """Of a dataset's files those that hold rows; a README's or the repository's own JSON files do not."""
    plain = ("dataset_infos.json", "README.txt", "LICENSE.txt", "config.json")
    return [file for file in listing if file.filename.endswith(DATA_SUFFIXES) and file.filename not in plain]
