"""Small SAEs for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sae_match import Permutation, SparseAutoencoder
from sae_match.evaluation.splices import BoundSplice, SplicePair, SpliceUnits, bind_all
from sae_match.evaluation.standard_splices import STANDARD, Quantiles


def random_sae(width: int = 24, d: int = 8, seed: int = 0) -> SparseAutoencoder:
    """Unit decoder rows, tied-ish encoder, negative biases, thresholds in (0.3, 1.3)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    decoder = torch.nn.functional.normalize(normal(width, d), dim=1)
    return SparseAutoencoder(
        W_enc=decoder.T + 0.1 * normal(d, width),
        b_enc=-0.3 * normal(width).abs(),
        W_dec=decoder,
        b_dec=0.1 * normal(d),
        threshold=0.3 + torch.rand(width, generator=generator),
        source=f"random seed {seed}",
    )


def permuted(sae: SparseAutoencoder, order: Tensor) -> SparseAutoencoder:
    """The same SAE with feature `order[j]` at position j."""
    return SparseAutoencoder(
        W_enc=sae.W_enc[:, order],
        b_enc=sae.b_enc[order],
        W_dec=sae.W_dec[order],
        b_dec=sae.b_dec,
        threshold=sae.threshold[order],
    )


def identity_sae(d: int = 4) -> SparseAutoencoder:
    """Reconstructs every input exactly: feature i fires on +e_i, feature d + i on -e_i."""
    both_signs = torch.cat([torch.eye(d), -torch.eye(d)])
    return SparseAutoencoder(
        W_enc=both_signs.T.contiguous(),
        b_enc=torch.zeros(2 * d),
        W_dec=both_signs,
        b_dec=torch.zeros(d),
        threshold=torch.full((2 * d,), 1e-12),
    )


def scientific(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics without what the machine's speed and memory decide: equal for equal jobs."""
    measured = ("solver_seconds", "solver/seconds", "solver/peak_memory_gib")
    return {name: value for name, value in metrics.items() if not name.startswith(measured)}


def splices_of_pair(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    permutations: Mapping[str, Permutation],
    units: SpliceUnits,
    quantiles: Sequence[float] = (),
) -> dict[str, BoundSplice]:
    """The standard splices of a pair, and quantiles, by name."""
    chosen = (*STANDARD, Quantiles(quantiles=tuple(quantiles))) if quantiles else STANDARD
    return bind_all(chosen, SplicePair(a, b, permutations, units))
