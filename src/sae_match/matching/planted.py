"""Whether feature i of one SAE resembles feature i of another: the mark of two trainings from one initialization."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.matching.permutation import Permutation
from sae_match.matching.problem import unit_rows64
from sae_match.saes import SparseAutoencoder

STANDARD_ERRORS = 4.0
"""By so many the identity must stand above random pairs: chance gives that once in 30,000 pairs of SAEs."""
CHUNK_ROWS = 2**12


def planted_identity(vanilla: Float[Tensor, " M"], random: Float[Tensor, " N"]) -> str | None:
    """A warning where feature i resembles feature i of the other SAE more than a random one; None where it does not.

    The order of features means nothing, so that the identity is a random permutation, unless both SAEs were trained
    from one initialization (the default of sparsify and dictionary_learning): then the best match is largely that.

    Compared is the mean decoder cosine, whose error over pairs of features is known; intervals over documents do not
    cover how much a matching score varies from one random permutation to another.

    Args:
        vanilla, random: decoder cosine of every pair of the identity, and of a random permutation.
    """
    ours, theirs = (cosines.to(torch.float64) for cosines in (vanilla, random))
    if min(len(ours), len(theirs)) < 2:
        return None
    margin = float(ours.mean() - theirs.mean())
    error = float((ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt())
    if margin <= STANDARD_ERRORS * error:
        return None
    return (
        f"feature i resembles feature i of the other SAE (vanilla: mean decoder cosine {float(ours.mean()):.3f}, "
        f"random pairs {float(theirs.mean()):.3f} +- {error:.3f}). The SAEs seem to be trained from one "
        "initialization, and the matching finds that, too: take SAEs of different seeds"
    )


def planted_between(a: SparseAutoencoder, b: SparseAutoencoder) -> str | None:
    """`planted_identity` of two SAEs, against one seeded random permutation; None where they cannot be compared."""
    if a.d_model != b.d_model:
        return None
    every = Permutation.identity(a.width, b.width), Permutation.random(a.width, b.width, seed=0)
    return planted_identity(*(decoder_cosines(a, b, permutation) for permutation in every))


def decoder_cosines(a: SparseAutoencoder, b: SparseAutoencoder, permutation: Permutation) -> Float[Tensor, " M"]:
    """Cosine of the decoder rows of every matched pair, in float64 on the CPU; 0 where a row is zero."""
    left, right = permutation.matched.to(a.device), permutation.indices[permutation.matched].to(b.device)
    parts = zip(left.split(CHUNK_ROWS), right.split(CHUNK_ROWS), strict=True)
    # In float64: a share of cosines above a threshold must not depend on how the rows were scaled.
    return torch.cat([(unit_rows64(a.W_dec[i]) * unit_rows64(b.W_dec[j])).sum(dim=1).cpu() for i, j in parts])
