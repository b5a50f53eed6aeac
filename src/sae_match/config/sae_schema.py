"""Dataclass schema of the `sae` group: which checkpoints are read, and how they are laid out. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING


class Dialect(StrEnum):
    """On-disk layout of SAE checkpoints."""

    native = "native"
    gemma_scope = "gemma_scope"
    gemma_scope_2 = "gemma_scope_2"
    llama_scope = "llama_scope"
    saelens = "saelens"
    sparsify = "sparsify"
    dictionary_learning = "dictionary_learning"


class Site(StrEnum):
    """Where in a block an SAE reads. Residual streams are captured at resid_post, so only that site is encoded."""

    resid_post = "resid_post"
    resid_pre = "resid_pre"
    resid_mid = "resid_mid"
    mlp_out = "mlp_out"
    attn_out = "attn_out"
    transcoder = "transcoder"
    embedding = "embedding"
    unknown = "unknown"


@dataclass
class SaeConfig:
    """Which sparse autoencoders are matched."""

    name: str = MISSING
    """Short name used in records."""
    dialect: Dialect = MISSING
    """File layout."""
    root: str | None = None
    """Local directory in the hub's layout; read in place of the hub when set."""
    repo_id: str | None = None
    """Hub repository."""
    revision: str | None = None
    """Hub revision; null = main."""
    width: str | None = None
    """Gemma Scope width, such as 16k."""
    l0: str | None = None
    """Sparsity. Gemma Scope: canonical, paper, similar (evenest L0 over the span), or a number that names
    average_l0_N. Gemma Scope 2: small, medium or big. Native: a number that l0_filename holds. In place of a number
    there may be one per layer of the span, such as 71/70."""
    l0_near: int | None = None
    """With l0=similar: each layer takes the L0 nearest to this one; null = the evenest choice at any sparsity."""
    every_layer: bool = True
    """Gemma Scope 2: the folders SITE_all, which cover every layer (small and big only); false = four layers."""
    affine: bool = False
    """Gemma Scope 2 transcoders: the variant with an affine skip connection."""
    folder: str | None = None
    """Folder of one layer inside root or repo_id (llama_scope, saelens, sparsify, dictionary_learning), with {layer}
    or {next} (= layer + 1, for SAEs that read the input of the next block)."""
    norm_scaling_factors: dict[int, float] = field(default_factory=dict)
    """SAELens, normalize_activations=expected_average_only_in: the factor per layer that scaled the inputs in training;
    the files do not hold it. On the command line with a plus: '+sae.norm_scaling_factors={7: 2.5, 8: 2.4}'."""
    filename: str = "layer_{layer:02d}.safetensors"
    """Native layout: file name per layer."""
    l0_filename: str | None = None
    """Native layout: file name at sae.l0=N, with {layer} and {l0}; a folder may stand in front."""
    default_l0: int | None = None
    """Native layout: the L0 that `filename` was trained for; sae.l0 of null or of this number reads it."""
    ceiling_filename: str | None = None
    """Native layout: file name of a second seed; where it exists the same-layer match is the ceiling."""
    site: Site | None = None
    """Where in the block the SAEs read; null = what the files say. All but resid_post are matched by weights only."""
    d_model: int | None = None
    """Width of what the SAEs read, where known before their files are."""
    n_layers: int | None = None
    """Number of blocks of the model that the SAEs belong to, where known."""
    neuronpedia: str | None = None
    """Name of these SAEs on neuronpedia.org as MODEL/SOURCE with {layer}, for links; null = they are not there."""
    first_layer: int = 0
    """First layer for which SAEs exist."""
    last_layer: int = MISSING
    """Last layer for which SAEs exist."""
