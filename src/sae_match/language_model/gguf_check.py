"""A look at a GGUF file's header before its reader follows it: counts and lengths that the file cannot hold.

Layout (ggml's docs/gguf.md): magic, version, number of tensors, number of key-value pairs; each pair a string, a type
and a value, where arrays carry their own length; then for each tensor its name, shape, type and offset.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from sae_match.errors import UserError

MAGIC, VERSIONS = b"GGUF", (2, 3)
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by GGUF's type number."""
_STRING, _ARRAY = 8, 9
_PAIR_BYTES, _TENSOR_BYTES, _MAX_DIMENSIONS = 13, 24, 8


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
