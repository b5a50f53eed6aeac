"""Language models: loading, captured residual streams, and forward passes resumed from a replaced residual."""

from __future__ import annotations

from sae_match.language_model.capturing import capture
from sae_match.language_model.language_model import LanguageModel
from sae_match.language_model.loading import load_language_model, resolve_device
from sae_match.language_model.residual_streams import ResidualStreams

__all__ = ["LanguageModel", "ResidualStreams", "capture", "load_language_model", "resolve_device"]
