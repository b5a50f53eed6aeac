"""Is an entry still what was put there? Every kind by its own rule, with the code that reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from .entries import HUB, RESULTS, Entry, untouched

UNCHECKED = ("offload", "wandb")
"""Kinds that hold other libraries' files, which say nothing of their content."""


def damage(entry: Entry) -> str | None:
    """What is wrong with an entry, or None; there is nothing with `UNCHECKED` kinds and with entries that are gone.

    Looking does not count as use: the files keep their times.
    """
    if entry.kind in UNCHECKED:
        return None
    with untouched(entry.path):
        found = _CHECKS[entry.kind](entry.path)
    return found if entry.path.exists() else None


def _result(path: Path) -> str | None:
    from sae_match.record.cache import ResultCache

    if not re.fullmatch(r"[0-9a-f]{16,64}", path.stem):
        return "its name is no key"
    return ResultCache(path.parent).damage(path.stem)


def _tokens(path: Path) -> str | None:
    from sae_match.text.cache import entry_damage

    if not (path / "manifest.json").exists():
        return None  # unfinished: the manifest is written last, and readers go by it
    return entry_damage(path)


def _streams(path: Path) -> str | None:
    from sae_match.errors import UserError
    from sae_match.language_model.residual_streams import ResidualStreams

    if not (path / "manifest.json").exists():
        return None if not list(path.glob("*.safetensors")) else "layers without a manifest"
    try:
        streams = ResidualStreams(path, in_use=False)
        if streams.key != path.name:
            return "the manifest is another entry's"
        for layer in streams.layers:
            streams.layer(layer)
            if not _sum_holds(path / f"layer_{layer:02d}.safetensors"):
                return f"layer {layer}: checksum mismatch"
    except (UserError, OSError, TypeError) as error:
        return str(error)
    return None


def _sum_holds(path: Path) -> bool:
    """Whether a file has the SHA-256 that lies beside it; true where there is none, for layers captured before there
    were any."""
    from sae_match.language_model.sums import file_sum

    beside = path.with_suffix(".sha256")
    return not beside.is_file() or beside.read_text(encoding="utf-8").strip() == file_sum(path)


def _model(path: Path) -> str | None:
    import json

    from safetensors import SafetensorError, safe_open

    from sae_match.language_model.sums import sums_damage

    try:
        json.loads((path / "config.json").read_text(encoding="utf-8"))
        weights = sorted(path.glob("*.safetensors"))
        if not weights:
            return "no weights"
        for file in weights:
            with safe_open(file, framework="numpy") as stored:
                list(stored.keys())
        return sums_damage(path)
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)


def _hub(path: Path) -> str | None:
    from sae_match.errors import UserError
    from sae_match.hub import verify

    for blob in sorted((path / "blobs").glob("*")):
        try:
            verify(blob)
        except (UserError, OSError) as error:
            return str(error)
    return None


_CHECKS: dict[str, Callable[[Path], str | None]] = {
    "models": _model,
    "residual_streams": _streams,
    "tokens": _tokens,
    HUB: _hub,
    **dict.fromkeys(RESULTS, _result),
}
