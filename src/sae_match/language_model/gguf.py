"""GGUF model files, converted once into a safetensors model directory: transformers can read them, but slowly."""

from __future__ import annotations

import copy
import logging
import math
import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_match.errors import UserError
from sae_match.language_model.loading import without_progress_bars
from sae_match.store import Store

_UNREADABLE = (
    ValueError, KeyError, IndexError, OSError, ImportError, struct.error, TypeError, AttributeError, OverflowError,
    RuntimeError, MemoryError, AssertionError,
)  # fmt: skip
"""What transformers raises for a damaged file, an unknown architecture or a missing gguf library."""

# Layout (ggml's docs/gguf.md): magic, version, number of tensors, number of key-value pairs; each pair a string, a type
# and a value, where arrays carry their own length; then for each tensor its name, shape, type and offset.
MAGIC, VERSIONS = b"GGUF", (2, 3)
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by GGUF's type number."""
_STRING, _ARRAY = 8, 9
_PAIR_BYTES, _TENSOR_BYTES, _MAX_DIMENSIONS = 13, 24, 8

CONVERSION_VERSION = 1
"""To be raised when a conversion gives other weights."""

_log = logging.getLogger(__name__)


def converted(sha256: str, find: Callable[[], Path], store: Store) -> Path:
    """Directory with the model of the GGUF file of this content as safetensors in float32.

    It is made from what `find` returns if it is not there.

    Raises:
        UserError: from `find`, for a file that transformers cannot read, or where the result cannot be written.
    """

    def fill(folder: Path) -> None:
        gguf = find()
        _log.info("converting %s to safetensors, once, into %s", gguf, store.root)
        _convert(gguf, folder)

    return store.folder("models", conversion_key(sha256), fill, {"model": "converted from GGUF"})


def conversion_key(sha256: str) -> dict[str, object]:
    """Key of a converted model in the store."""
    return {"version": CONVERSION_VERSION, "gguf": sha256, "dtype": "float32"}


def _convert(gguf: Path, into: Path) -> None:
    check_gguf(gguf)
    if find_spec("gguf") is None:
        raise UserError(f"{gguf}: a GGUF file needs the gguf package: `pip install 'sae-match[gguf]'`.")
    with without_progress_bars():
        try:
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except _UNREADABLE as error:
            raise UserError(
                f"{gguf}: transformers cannot read this GGUF file.\n{type(error).__name__}: {error}"
            ) from error
        # save_pretrained refuses a model that came from GGUF, so the same class is rebuilt without that mark.
        config = copy.deepcopy(loaded.config)
        del config.quantization_config
        plain = type(loaded)(config)
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(into)
        tokenizer.save_pretrained(into)


def check_gguf(path: Path) -> None:
    """Refuse a file whose header does not fit into it; readers would loop over such counts for ever.

    Raises:
        UserError: not GGUF, an unknown version, or counts, lengths or shapes larger than the file.
    """
    try:
        with path.open("rb") as file:
            _walk_header(file, path.stat().st_size)
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path}: not a whole GGUF file ({error}); fetch it again") from None


def _walk_header(file: BinaryIO, size: int) -> None:
    def number(layout: Literal["<I", "<Q"]) -> int:
        return int(struct.unpack(layout, file.read(struct.calcsize(layout)))[0])

    def require(n: int, what: str) -> None:
        if n > size - file.tell():
            raise ValueError(f"its header claims {what}, and the file ends after {size} bytes")

    def skip(n: int) -> None:
        require(n, f"{n} more bytes")
        file.seek(n, 1)

    def skip_value(kind: int, nested: bool = False) -> None:
        if kind in _SCALARS:
            skip(_SCALARS[kind])
        elif kind == _STRING:
            skip(number("<Q"))
        elif kind == _ARRAY and not nested:
            inner, length = number("<I"), number("<Q")
            if inner in _SCALARS:
                skip(length * _SCALARS[inner])
                return
            require(8 * length, f"an array of {length} strings")
            for _ in range(length):
                skip_value(inner, nested=True)
        else:
            raise ValueError(f"unknown type {kind} in its header")

    if file.read(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, tensors, pairs = number("<I"), number("<Q"), number("<Q")
    if version not in VERSIONS:
        raise ValueError(f"version {version}, expected {' or '.join(map(str, VERSIONS))}")
    require(pairs * _PAIR_BYTES + tensors * _TENSOR_BYTES, f"{pairs} entries and {tensors} tensors")
    for _ in range(pairs):
        skip(number("<Q"))
        skip_value(number("<I"))
    for _ in range(tensors):
        skip(number("<Q"))
        dimensions = number("<I")
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        elements = math.prod(number("<Q") for _ in range(dimensions))
        # No quantization packs more than eight weights into a byte.
        if elements > 8 * size:
            raise ValueError(f"a tensor of {elements} weights in a file of {size} bytes")
        skip(12)  # its type and offset
