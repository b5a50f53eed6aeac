"""GGUF model files, converted once into a safetensors model directory: transformers can read them, but slowly."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import os
import shutil
import struct
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_match.atomic import mode_of_new_files, set_mode
from sae_match.errors import UserError
from sae_match.language_model.loading import without_progress_bars
from sae_match.language_model.sums import write_sums

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

_log = logging.getLogger(__name__)


def converted_gguf(gguf: Path, cache_dir: Path) -> Path:
    """Directory of a GGUF file's model as safetensors in float32, converted on the first call.

    Args:
        gguf: the file.
        cache_dir: shared cache; the model goes to `<cache_dir>/models/<file name>-<start of the file's sha256>`.

    Raises:
        UserError: no such file, or one that transformers cannot read.
    """
    if not gguf.is_file():
        raise UserError(f"model.path={gguf}: no such file")
    return converted(f"{gguf.stem}-{sha256(gguf)[:12]}", lambda: gguf, cache_dir)


def converted(name: str, find: Callable[[], Path], cache_dir: Path) -> Path:
    """Directory `<cache_dir>/models/<name>` with the model of the GGUF file that `find` returns; made if not there.

    Raises:
        UserError: from `find`, for a file that transformers cannot read, or where the result cannot be placed.
    """
    target = Path(cache_dir) / "models" / name
    if (target / "config.json").is_file():
        return target
    gguf = find()
    _log.info("converting %s to safetensors, once, into %s", gguf, target)
    scratch = target.parent / f".{name}-{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        _convert(gguf, scratch)
        write_sums(scratch)
        mode = mode_of_new_files(scratch)
        for file in scratch.rglob("*"):
            if file.is_file():
                set_mode(file, mode)
        # Two jobs may convert at once: the first rename wins, the other finds a non-empty directory and keeps it.
        with contextlib.suppress(OSError):
            os.rename(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not (target / "config.json").is_file():
        raise UserError(f"could not place the converted model at {target}: remove that directory and run again")
    return target


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            _Header(file, path.stat().st_size).walk()
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path}: not a whole GGUF file ({error}); fetch it again") from None


class _Header:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def walk(self) -> None:
        if self.file.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version, tensors, pairs = self._number("I"), self._number("Q"), self._number("Q")
        if version not in VERSIONS:
            raise ValueError(f"version {version}, expected {' or '.join(map(str, VERSIONS))}")
        self._room(pairs * _PAIR_BYTES + tensors * _TENSOR_BYTES, f"{pairs} entries and {tensors} tensors")
        for _ in range(pairs):
            self._string()
            self._value(self._number("I"), nested=False)
        for _ in range(tensors):
            self._tensor()

    def _tensor(self) -> None:
        self._string()
        dimensions = self._number("I")
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        elements = 1
        for _ in range(dimensions):
            elements *= self._number("Q")
        # No quantisation packs more than eight weights into a byte.
        if elements > 8 * self.size:
            raise ValueError(f"a tensor of {elements} weights in a file of {self.size} bytes")
        self._skip(12)

    def _value(self, kind: int, nested: bool) -> None:
        if kind in _SCALARS:
            self._skip(_SCALARS[kind])
        elif kind == _STRING:
            self._string()
        elif kind == _ARRAY and not nested:
            inner, length = self._number("I"), self._number("Q")
            if inner in _SCALARS:
                self._skip(length * _SCALARS[inner])
                return
            self._room(8 * length, f"an array of {length} strings")
            for _ in range(length):
                self._value(inner, nested=True)
        else:
            raise ValueError(f"unknown type {kind} in its header")

    def _string(self) -> None:
        self._skip(self._number("Q"))

    def _number(self, kind: str) -> int:
        layout = f"<{kind}"
        return int(struct.unpack(layout, self.file.read(struct.calcsize(layout)))[0])

    def _skip(self, n: int) -> None:
        self._room(n, f"{n} more bytes")
        self.file.seek(n, 1)

    def _room(self, n: int, what: str) -> None:
        if n > self.size - self.file.tell():
            raise ValueError(f"its header claims {what}, and the file ends after {self.size} bytes")
