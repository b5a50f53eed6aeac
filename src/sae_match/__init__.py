"""sae_match: follow sparse-autoencoder features through a language model by matching them across layers.

The library face: `load_sae`, `fold`, `match`, `Permutation`, `SparseAutoencoder`, `evaluate_pair`.
"""

from sae_match.errors import UserError
from sae_match.matching import Matching, Permutation, match
from sae_match.saes import SparseAutoencoder, fold, load_sae

__version__ = "0.1.0"

__all__ = ["Matching", "Permutation", "SparseAutoencoder", "UserError", "fold", "load_sae", "match"]
