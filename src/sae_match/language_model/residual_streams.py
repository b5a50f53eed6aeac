"""Captured residual streams on disk: one memory-mapped safetensors file per layer."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.entries import UNREADABLE, read_mark
from sae_match.errors import UserError
from sae_match.files import shared_lock

TENSOR_NAME = "resid_post"
_FILE_PATTERN = "layer_[0-9][0-9]*.safetensors"


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

    Position 0 of every window is stored too; leaving it out is the readers' duty.
    """

    def __init__(self, directory: Path) -> None:
        """Opens an entry of the store, which stays as long as this object lives.

        Raises:
            UserError: it is none, or its mark is damaged.
        """
        self.directory = Path(directory)
        self._lock = shared_lock(self.directory)
        try:
            self.manifest = Manifest(**read_mark(self.directory)["about"])
        except UNREADABLE as error:
            raise UserError(f"{self.directory}: holds no residual streams ({error}); delete it and run again") from None

    @cached_property
    def layers(self) -> list[int]:
        """Layers that are complete, ascending."""
        return sorted(int(path.stem.removeprefix("layer_")) for path in self.directory.glob(_FILE_PATTERN))

    @property
    def key(self) -> str:
        """Content hash of model and windows."""
        return self.manifest.key

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return self.manifest.n_windows

    @property
    def window_tokens(self) -> int:
        """Tokens per window, position 0 included."""
        return self.manifest.window_tokens

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.manifest.d_model

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
