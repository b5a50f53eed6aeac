"""One pass of text through a language model, into the store of residual streams.

A capture that is killed leaves `layer_XX.safetensors.partial` files and `progress.json`; the next call goes on from
there. A lock makes a second process wait for the first and then reuse its result.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from sae_match.entries import entry_hash, find_corruption, set_sums
from sae_match.errors import UserError
from sae_match.files import file_sha256, format_size
from sae_match.language_model.model import LanguageModel
from sae_match.language_model.residual_streams import Manifest, ResidualStreams, layer_path
from sae_match.store import Store

KIND = "residual_streams"
CAPTURE_VERSION = 1
"""To be raised when what is captured, or how it is written, changes."""
_CHECKPOINT_SECONDS = 20.0

logger = logging.getLogger(__name__)


class Windows(Protocol):
    """The part of `TokenWindows` that a capture needs."""

    @property
    def ids(self) -> Int[Tensor, "windows tokens"]:
        """Token ids."""

    @property
    def key(self) -> str:
        """Content hash of the windows."""


def capture(
    model: LanguageModel,
    windows: Windows,
    layers: Sequence[int],
    store: Store,
    batch_windows: int = 8,
    progress: bool = False,
) -> ResidualStreams:
    """Residual streams after the blocks `layers` for all windows, captured in one pass where not stored yet.

    Args:
        model: the language model.
        windows: token windows; their `key` and the model's make the entry's key.
        layers: 0-based blocks; those already in the entry are not captured again.
        batch_windows: windows per forward pass.
        progress: show a progress bar.

    Returns:
        All layers of the entry (those asked for and any captured before).

    Raises:
        UserError: a layer does not exist, there are no windows, or the disk is too full.
    """
    model.check_layers(layers)
    n_windows, window_tokens = windows.ids.shape
    if n_windows == 0:
        raise UserError("there are no token windows to capture: check the dataset's documents and window_tokens")
    key = {"version": CAPTURE_VERSION, "model": model.key, "windows": windows.key}
    manifest = Manifest(
        entry_hash(KIND, key), model.key, model.name, windows.key, n_windows, window_tokens, model.d_model
    )
    streams = ResidualStreams(store.growing_folder(KIND, key, asdict(manifest)))
    _drop_damaged(streams, layers, store)
    if _missing(streams.directory, layers):
        with store.writing(streams.directory):
            missing = _missing(streams.directory, layers)  # another process may have captured them meanwhile
            if missing:
                _PartialCapture(streams.directory, manifest, missing).run(model, windows.ids, batch_windows, progress)
    return streams


def _append(files: dict[int, BinaryIO], layer: int, residual: Float[Tensor, "B T d"]) -> None:
    files[layer].write(residual.to("cpu", torch.float32).contiguous().numpy().data)


def _missing(directory: Path, layers: Sequence[int]) -> list[int]:
    return sorted(layer for layer in set(layers) if not layer_path(directory, layer).is_file())


def _drop_damaged(streams: ResidualStreams, layers: Sequence[int], store: Store) -> None:
    """Removes layers whose file is not what was captured (bytes changed, missing, or another layer's), with a warning.

    Jobs that read such a file at this moment keep what they have mapped.
    """

    def problem(layer: int) -> str | None:
        path = layer_path(streams.directory, layer)
        if not path.is_file():
            return None
        return streams.find_corruption(layer) or find_corruption(streams.directory, [path.name])

    damaged = [layer for layer in sorted(set(layers)) if problem(layer) is not None]
    if not damaged:
        return
    with store.writing(streams.directory):
        for layer in damaged:
            # Asked again: another process may have captured it anew while this one waited.
            if (what := problem(layer)) is not None:
                path = layer_path(streams.directory, layer)
                logger.warning("%s is damaged (%s) and will be captured anew", path, what)
                path.unlink(missing_ok=True)
                set_sums(streams.directory, {path.name: None})


class _PartialCapture:
    """The unfinished files of some layers, and how many windows each of them holds."""

    def __init__(self, directory: Path, manifest: Manifest, layers: list[int]) -> None:
        self.directory, self.manifest, self.layers = directory, manifest, layers
        self.record = directory / "progress.json"
        done = self._read_record()
        self.windows_done = {int(layer): int(n) for layer, n in done.items() if self._path(int(layer)).is_file()}

    def run(self, model: LanguageModel, ids: Int[Tensor, "windows tokens"], batch: int, progress: bool) -> None:
        """Captures what is missing, then gives the files their final names."""
        start = min(self.windows_done.get(layer, 0) for layer in self.layers)
        self._require_space()
        bar = tqdm(total=len(ids), initial=start, desc="residual streams", unit="window", disable=not progress)
        with ExitStack() as stack:
            stack.enter_context(bar)
            files = {layer: stack.enter_context(self._open(layer, start)) for layer in self.layers}
            saved_at = time.monotonic()
            for first in range(start, len(ids), batch):
                part = ids[first : first + batch]
                model.stream_resid_post(part, self.layers, partial(_append, files))
                bar.update(len(part))
                if time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                    self._checkpoint(files, min(first + batch, len(ids)))
                    saved_at = time.monotonic()
            self._checkpoint(files, len(ids))
        self._finish()

    def _path(self, layer: int) -> Path:
        return self.directory / f"layer_{layer:02d}.safetensors.partial"

    def _open(self, layer: int, start: int) -> BinaryIO:
        """The layer's partial file, positioned where window `start` begins."""
        path, header = self._path(layer), self.manifest.header(layer)
        if layer not in self.windows_done:
            path.write_bytes(header)
        file = path.open("r+b")
        file.seek(len(header) + start * (self.manifest.layer_bytes // self.manifest.n_windows))
        return file

    def _checkpoint(self, files: dict[int, BinaryIO], windows: int) -> None:
        """Makes the files durable first: the record must never claim more than the disk holds."""
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        self.windows_done |= {layer: max(windows, self.windows_done.get(layer, 0)) for layer in files}
        self._write_record()

    def _finish(self) -> None:
        for layer in self.layers:
            path, checksum = layer_path(self.directory, layer), file_sha256(self._path(layer))
            os.replace(self._path(layer), path)
            set_sums(self.directory, {path.name: checksum})
            del self.windows_done[layer]
        self._write_record()

    def _read_record(self) -> dict[str, int]:
        try:
            done = json.loads(self.record.read_text()) if self.record.is_file() else {}
            return {str(int(layer)): int(n) for layer, n in done.items() if 0 <= int(n) <= self.manifest.n_windows}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged (%s): the capture starts over", self.record, error)
            return {}

    def _write_record(self) -> None:
        if not self.windows_done:
            self.record.unlink(missing_ok=True)
            return
        temporary = self.record.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.windows_done))
        os.replace(temporary, self.record)

    def _require_space(self) -> None:
        per_window = self.manifest.layer_bytes // self.manifest.n_windows
        left = sum(self.manifest.n_windows - self.windows_done.get(layer, 0) for layer in self.layers)
        free = shutil.disk_usage(self.directory).free
        if left * per_window > free:
            raise UserError(
                f"{self.directory}: residual streams of layers {self.layers} need {format_size(left * per_window)}, "
                f"{format_size(free)} are free. Use fewer documents or layers, or another paths.cache_dir."
            )
