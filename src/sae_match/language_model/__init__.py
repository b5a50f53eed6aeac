"""Language models: loading, captured residual streams, and forward passes resumed from a replaced residual.

Imported on first use: the classes of `sources`, `embedded` and `hub` need neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_match.language_model.loading import load_language_model, resolve_device
    from sae_match.language_model.model import LanguageModel
    from sae_match.language_model.residual_streams import ResidualStreams, capture

__all__ = ["LanguageModel", "ResidualStreams", "capture", "load_language_model", "resolve_device"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {"LanguageModel": "model", "ResidualStreams": "residual_streams", "capture": "residual_streams"}
    return getattr(import_module(f"{__name__}.{homes.get(name, 'loading')}"), name)
