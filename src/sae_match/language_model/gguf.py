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
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_match.atomic import mode_of_new_files, set_mode
from sae_match.errors import UserError
from sae_match.language_model.gguf_check import check_gguf
from sae_match.language_model.quiet import without_progress_bars
from sae_match.language_model.sums import write_sums

_UNREADABLE = (
    ValueError, KeyError, IndexError, OSError, ImportError, struct.error, TypeError, AttributeError, OverflowError,
    RuntimeError, MemoryError, AssertionError,
)  # fmt: skip
"""What transformers raises for a damaged file, an unknown architecture or a missing gguf library."""

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
