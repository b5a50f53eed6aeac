"""GGUF model files, converted once into a safetensors model directory: transformers can read them, but slowly."""

from __future__ import annotations

import copy
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_match.errors import UserError
from sae_match.files import file_sha256
from sae_match.language_model.gguf_check import check_gguf
from sae_match.language_model.quiet import without_progress_bars
from sae_match.store import Store

_UNREADABLE = (
    ValueError, KeyError, IndexError, OSError, ImportError, struct.error, TypeError, AttributeError, OverflowError,
    RuntimeError, MemoryError, AssertionError,
)  # fmt: skip
"""What transformers raises for a damaged file, an unknown architecture or a missing gguf library."""

CONVERSION_VERSION = 1
"""To be raised when a conversion gives other weights."""

_log = logging.getLogger(__name__)


def converted_gguf(gguf: Path, store: Store) -> Path:
    """Directory of a GGUF file's model as safetensors in float32, converted on the first call.

    Raises:
        UserError: no such file, or one that transformers cannot read.
    """
    if not gguf.is_file():
        raise UserError(f"model.path={gguf}: no such file")
    return converted(file_sha256(gguf), lambda: gguf, store)


def converted(sha256: str, find: Callable[[], Path], store: Store) -> Path:
    """Directory with the model of the GGUF file of this content; made from what `find` returns if it is not there.

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
