"""Residual streams: captured in one pass of text through a model, kept in the store, read memory-mapped.

Each layer is one safetensors file. A capture that is killed leaves `layer_XX.safetensors.partial` files and
`progress.json`; the next call goes on from there. A second process waits for the first and reuses its result.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from sae_match.entries import UNREADABLE, entry_hash, find_corruption, read_mark, set_sums
from sae_match.errors import UserError
from sae_match.files import file_sha256, format_size, shared_lock

if TYPE_CHECKING:
    from sae_match.language_model.model import LanguageModel
    from sae_match.store import Store
    from sae_match.text import TokenWindows

KIND = "residual_streams"
CAPTURE_VERSION = 1
"""To be raised when what is captured, or how it is written, changes."""
TENSOR_NAME = "resid_post"
_CHECKPOINT_SECONDS = 20.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """What an entry of the store holds; equal for all of its layers."""

    key: str
    model_key: str
    model_name: str
    windows_key: str
    n_windows: int
    window_tokens: int
    d_model: int
    dtype: str = "float32"

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer's data."""
        return layer_bytes(self.n_windows, self.window_tokens, self.d_model)

    def header(self, layer: int) -> bytes:
        """Head of the layer's safetensors file, length prefix included; the data follows it directly."""
        shape = [self.n_windows, self.window_tokens, self.d_model]
        metadata = {"layer": str(layer), "key": self.key}
        tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, self.layer_bytes]}
        text = json.dumps({"__metadata__": metadata, TENSOR_NAME: tensor}).encode()
        text += b" " * (-len(text) % 8)  # safetensors wants aligned data
        return struct.pack("<Q", len(text)) + text


def layer_bytes(n_windows: int, window_tokens: int, d_model: int) -> int:
    """Bytes of one layer's residual stream on disk: float32, sink positions included."""
    return 4 * n_windows * window_tokens * d_model


def layer_path(directory: Path, layer: int) -> Path:
    """Path of one layer's finished file."""
    return directory / f"layer_{layer:02d}.safetensors"


class ResidualStreams:
    """Residual streams of all windows, per layer, read from disk as they are touched.

    Attributes:
        key: content hash of model and windows.
        n_windows, window_tokens, d_model: shape of each layer. Sink positions are included; readers leave them out.
    """

    def __init__(self, directory: Path) -> None:
        """Opens an entry of the store, which stays as long as this object lives.

        Raises:
            UserError: it is none, or its mark is damaged.
        """
        self.directory = Path(directory)
        self._lock = shared_lock(self.directory)
        try:
            manifest = Manifest(**read_mark(self.directory)["about"])
        except UNREADABLE as error:
            raise UserError(f"{self.directory}: holds no residual streams ({error}); delete it and run again") from None
        self.manifest, self.key = manifest, manifest.key
        self.n_windows, self.window_tokens, self.d_model = manifest.n_windows, manifest.window_tokens, manifest.d_model

    @cached_property
    def layers(self) -> list[int]:
        """Layers that are complete, ascending."""
        files = self.directory.glob("layer_[0-9][0-9]*.safetensors")
        return sorted(int(path.stem.removeprefix("layer_")) for path in files)

    def layer(self, layer: int) -> Float[Tensor, "windows tokens d"]:
        """Residual stream after block `layer`, float32, memory-mapped (writes to it never reach the file).

        Raises:
            UserError: the layer was not captured, or its file is damaged.
        """
        problem = self.find_corruption(layer)
        path = layer_path(self.directory, layer)
        if problem is not None and not path.is_file():
            raise UserError(f"{self.directory}: layer {layer} is not captured (there are {self.layers})")
        if problem is not None:
            raise UserError(f"{path}: damaged ({problem}); delete this file and rerun to capture the layer again")
        shape = (self.n_windows, self.window_tokens, self.d_model)
        offset = len(self.manifest.header(layer))
        return torch.from_numpy(np.memmap(path, dtype="<f4", mode="c", offset=offset, shape=shape))

    def find_corruption(self, layer: int) -> str | None:
        """What is wrong with a layer's file, judged by its size and by its header, which names entry and layer."""
        path, header = layer_path(self.directory, layer), self.manifest.header(layer)
        expected = len(header) + self.manifest.layer_bytes
        try:
            with path.open("rb") as file:
                if file.read(len(header)) != header:
                    return "another header"
            size = path.stat().st_size
        except OSError as error:
            return error.strerror or str(error)
        return None if size == expected else f"{size} bytes, expected {expected}"


def capture(
    model: LanguageModel,
    windows: TokenWindows,
    layers: Sequence[int],
    store: Store,
    batch_windows: int = 8,
    progress: bool = False,
) -> ResidualStreams:
    """Residual streams after the 0-based blocks `layers` for all windows, captured in one pass where not stored yet.

    The keys of model and windows make the entry's key. What is returned has the layers captured before, too.
    `batch_windows` windows go through a forward pass together.

    Raises:
        UserError: a layer or a token does not exist, there are no windows, or the disk is too full.
    """
    model.check_layers(layers)
    n_windows, window_tokens = windows.ids.shape
    if n_windows == 0:
        raise UserError("there are no token windows to capture: check the dataset's documents and window_tokens")
    model.check_ids(windows.ids)
    key = {"version": CAPTURE_VERSION, "model": model.key, "windows": windows.key}
    manifest = Manifest(
        entry_hash(KIND, key), model.key, model.name, windows.key, n_windows, window_tokens, model.d_model
    )
    streams = ResidualStreams(store.growing_folder(KIND, key, asdict(manifest)))
    if not all(_is_whole(streams, layer) for layer in layers):
        with store.writing(streams.directory):
            # Asked again: another process may have captured them while this one waited.
            missing = [layer for layer in sorted(set(layers)) if not _is_whole(streams, layer, drop=True)]
            if missing:
                _PartialCapture(streams.directory, manifest, missing).run(model, windows.ids, batch_windows, progress)
    return streams


def _is_whole(streams: ResidualStreams, layer: int, drop: bool = False) -> bool:
    """Whether a layer's file is there and what was captured (not changed, cut off or another layer's).

    With `drop` a damaged one is removed, with a warning. Jobs that read it at this moment keep what they have mapped.
    """
    path = layer_path(streams.directory, layer)
    if not path.is_file():
        return False
    damage = streams.find_corruption(layer) or find_corruption(streams.directory, [path.name])
    if damage is not None and drop:
        logger.warning("%s is damaged (%s) and will be captured anew", path, damage)
        path.unlink(missing_ok=True)
        set_sums(streams.directory, {path.name: None})
    return damage is None


class _PartialCapture:
    """The unfinished files of some layers, and how many windows each of them holds."""

    def __init__(self, directory: Path, manifest: Manifest, layers: list[int]) -> None:
        self.directory, self.manifest, self.layers = directory, manifest, layers
        self.record = directory / "progress.json"
        self.window_bytes = manifest.layer_bytes // manifest.n_windows
        self.windows_done = self._read_record()

    def run(self, model: LanguageModel, ids: Int[Tensor, "windows tokens"], batch: int, progress: bool) -> None:
        """Captures what is missing, then gives the files their final names."""
        start = min(self.windows_done.get(layer, 0) for layer in self.layers)
        self._require_space()
        bar = tqdm(total=len(ids), initial=start, desc="residual streams", unit="window", disable=not progress)
        with ExitStack() as stack:
            stack.enter_context(bar)
            files = {layer: stack.enter_context(self._open(layer, start)) for layer in self.layers}

            def append(layer: int, residual: Float[Tensor, "B T d"]) -> None:
                files[layer].write(residual.to("cpu", torch.float32).contiguous().numpy().data)

            saved_at = time.monotonic()
            for first in range(start, len(ids), batch):
                part = ids[first : first + batch]
                model.stream_resid_post(part, self.layers, append)
                bar.update(len(part))
                if time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                    self._checkpoint(files, min(first + batch, len(ids)))
                    saved_at = time.monotonic()
            self._checkpoint(files, len(ids))
        for layer in self.layers:
            path, checksum = layer_path(self.directory, layer), file_sha256(self._path(layer))
            os.replace(self._path(layer), path)
            set_sums(self.directory, {path.name: checksum})
            del self.windows_done[layer]
        self._write_record()

    def _path(self, layer: int) -> Path:
        return self.directory / f"layer_{layer:02d}.safetensors.partial"

    def _open(self, layer: int, start: int) -> BinaryIO:
        """The layer's partial file, positioned where window `start` begins."""
        path, header = self._path(layer), self.manifest.header(layer)
        if layer not in self.windows_done:
            path.write_bytes(header)
        file = path.open("r+b")
        file.seek(len(header) + start * self.window_bytes)
        return file

    def _checkpoint(self, files: dict[int, BinaryIO], windows: int) -> None:
        """Makes the files durable first: the record must never claim more than the disk holds."""
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        self.windows_done |= {layer: max(windows, self.windows_done.get(layer, 0)) for layer in files}
        self._write_record()

    def _read_record(self) -> dict[int, int]:
        try:
            done = json.loads(self.record.read_text()) if self.record.is_file() else {}
            counts = {int(layer): int(n) for layer, n in done.items() if 0 <= int(n) <= self.manifest.n_windows}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged (%s): the capture starts over", self.record, error)
            return {}
        return {layer: n for layer, n in counts.items() if self._path(layer).is_file()}

    def _write_record(self) -> None:
        if not self.windows_done:
            self.record.unlink(missing_ok=True)
            return
        temporary = self.record.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.windows_done))
        os.replace(temporary, self.record)

    def _require_space(self) -> None:
        left = sum(self.manifest.n_windows - self.windows_done.get(layer, 0) for layer in self.layers)
        needed, free = left * self.window_bytes, shutil.disk_usage(self.directory).free
        if needed > free:
            raise UserError(
                f"{self.directory}: residual streams of layers {self.layers} need {format_size(needed)}, "
                f"{format_size(free)} are free. Use fewer documents or layers, or another cache directory."
            )
