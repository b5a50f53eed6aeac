"""The text that a job reads: whether it is there or may be read, and how much of it, before anything is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from sae_match.experiment.problems import noting
from sae_match.hub_lookup import Lookup
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import TokenWindows
from sae_match.text.windows import find_windows


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


def plan_text(cfg: Study, lookup: Lookup, tokenizer: Path | None, problems: list[str]) -> PlannedText:
    """Find the text; whatever is wrong goes into `problems`.

    Args:
        tokenizer: directory of the model's tokenizer, where it is on this machine.
    """
    note = ""
    with noting(problems):
        note = cfg.dataset.note()
        windows = _materialised(cfg, tokenizer)
        if windows is not None:
            keep = windows.leading(cfg.evaluation.splice_documents, cfg.evaluation.splice_windows_per_document)
            note += "; already cut into windows, in the cache"
            return PlannedText(windows.n_windows, int(keep.sum()), windows.n_documents, note)
        if how := cfg.dataset.availability(lookup):
            note += f"; {how}"
    return PlannedText(*at_most(cfg), note)


def at_most(cfg: Study) -> tuple[int | None, int | None, int | None]:
    """Most windows, windows with token losses, and documents that the configuration allows; None = no limit."""
    documents, each = cfg.dataset.documents, cfg.dataset.windows_per_document
    windows = documents * each if documents and each else None
    splice_documents = min(filter(None, (cfg.evaluation.splice_documents, documents)), default=0)
    splice_each = min(filter(None, (cfg.evaluation.splice_windows_per_document, each)), default=0)
    spliced = splice_documents * splice_each if splice_documents and splice_each else None
    return windows, spliced, documents or None


def _materialised(cfg: Study, tokenizer: Path | None) -> TokenWindows | None:
    """Windows that an earlier job has cut; only where that spares a download."""
    if tokenizer is None or not cfg.dataset.downloads:
        return None
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None  # its files are not all there yet
    return find_windows(cfg.dataset, loaded, Store(cfg.paths.cache_dir), cfg.model.bos)
