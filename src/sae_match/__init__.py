"""sae_match: follow sparse-autoencoder features through a language model by matching them across layers.

The library face: `load_sae`, `fold`, `match`, `evaluate_pair`, `Permutation`, `SparseAutoencoder`. They are imported on
first use, so that the command line can print its help and check a configuration without loading torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sae_match.errors import UserError

if TYPE_CHECKING:
    from sae_match.evaluation import PairSettings, evaluate_pair, feature_table
    from sae_match.evaluation.stability import stability
    from sae_match.evaluation.stream_map import map_sae
    from sae_match.flows import Flow, flow
    from sae_match.matching import Matching, Permutation
    from sae_match.matching.match import (  # from its home: mypy may take the package's for the submodule
        match,
        match_chain,
    )
    from sae_match.matching.published import load_permutations
    from sae_match.notebook import evaluate_on_text, load_language_model, load_text, residual_streams, top_tokens
    from sae_match.saes import Convention, SparseAutoencoder, fold, load_sae

# A notebook names its backend to every process that it starts, and matplotlib refuses to be imported where that is not
# installed. Figures here are files, which need none.
_backend = os.environ.get("MPLBACKEND", "")
if _backend.startswith("module://") and find_spec(_backend.removeprefix("module://").split(".")[0]) is None:
    del os.environ["MPLBACKEND"]

__version__ = "0.1.0"

__all__ = [
    "Convention",
    "Flow",
    "Matching",
    "PairSettings",
    "Permutation",
    "SparseAutoencoder",
    "UserError",
    "evaluate_on_text",
    "evaluate_pair",
    "feature_table",
    "flow",
    "fold",
    "load_language_model",
    "load_permutations",
    "load_sae",
    "load_text",
    "map_sae",
    "match",
    "match_chain",
    "residual_streams",
    "stability",
    "top_tokens",
]

_HOMES = {
    "Convention": "sae_match.saes",
    "Flow": "sae_match.flows",
    "Matching": "sae_match.matching",
    "PairSettings": "sae_match.evaluation",
    "Permutation": "sae_match.matching",
    "SparseAutoencoder": "sae_match.saes",
    "evaluate_on_text": "sae_match.notebook",
    "evaluate_pair": "sae_match.evaluation",
    "feature_table": "sae_match.evaluation",
    "flow": "sae_match.flows",
    "fold": "sae_match.saes",
    "load_language_model": "sae_match.notebook",
    "load_permutations": "sae_match.matching.published",
    "load_sae": "sae_match.saes",
    "load_text": "sae_match.notebook",
    "map_sae": "sae_match.evaluation.stream_map",
    "match": "sae_match.matching",
    "match_chain": "sae_match.matching",
    "residual_streams": "sae_match.notebook",
    "stability": "sae_match.evaluation.stability",
    "top_tokens": "sae_match.notebook",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its package when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sae_match' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
