"""Sparse autoencoders: the canonical object, folding, and one small loader per checkpoint dialect."""

from sae_match.saes.activation import Activation, ActivationKind, Convention
from sae_match.saes.folding import fold, measure_scale, with_scale
from sae_match.saes.formats.base import FolderFormat, SaeFormat, SaeHeader
from sae_match.saes.formats.native import load_native, save_native
from sae_match.saes.formats.release import Release
from sae_match.saes.formats.state_dict import StateDict
from sae_match.saes.loading import SaeSource, load_sae
from sae_match.saes.releases import release_named, release_names
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

__all__ = [
    "Activation",
    "ActivationKind",
    "Convention",
    "FolderFormat",
    "Release",
    "SaeFormat",
    "SaeHeader",
    "SaeSource",
    "Site",
    "SparseAutoencoder",
    "StateDict",
    "fold",
    "load_native",
    "load_sae",
    "measure_scale",
    "release_named",
    "release_names",
    "save_native",
    "with_scale",
]
