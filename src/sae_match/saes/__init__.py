"""Sparse autoencoders: the canonical object, folding, and one small loader per checkpoint dialect."""

from sae_match.saes.folding import fold
from sae_match.saes.loading import SaeSource, load_sae
from sae_match.saes.native import load_native, save_native
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

__all__ = ["SaeSource", "SparseAutoencoder", "fold", "load_native", "load_sae", "save_native"]
