"""Decoder cosine and virtual weights: hand-computed numbers, planted permutations, every solver."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_match import SparseAutoencoder, UserError, match
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.similarity import Comparison, Similarity
from sae_match.matching.weight_similarities import DecoderCosine, VirtualWeights
from sae_match.options import option
from sae_match.saes.folding import FoldingKind
from tests.builders import permuted, random_sae

SIMILARITIES = (DecoderCosine(), VirtualWeights())
ASSIGNMENTS = ("certified", "dense", "greedy", "nearest", "mutual")


def tied(width: int = 12, d: int = 16, seed: int = 0) -> SparseAutoencoder:
    """W_enc = W_dec^T with unit rows: a feature's own encoder reads it best."""
    sae = random_sae(width, d, seed)
    return sae.replace(W_enc=sae.W_dec.T.contiguous())


def shuffled(n: int, seed: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def test_virtual_weights_are_products_of_decoder_rows_and_encoder_columns() -> None:
    sae = SparseAutoencoder(
        W_enc=torch.tensor([[1.0, 2.0], [3.0, 5.0]]), b_enc=torch.zeros(2),
        W_dec=torch.tensor([[1.0, 0.0], [1.0, 1.0]]), b_dec=torch.zeros(2), threshold=torch.tensor([2.0, 4.0]),
    )  # fmt: skip
    # Rows: (1, 2) and (1 + 3, 2 + 5); folded entry ij times theta_i / theta_j.
    assert VirtualWeights().matrix(FeaturePair(sae, sae, FoldingKind.none)).tolist() == [[1, 2], [4, 7]]
    assert VirtualWeights().matrix(FeaturePair(sae, sae)).tolist() == [[1, 1], [8, 7]]
    aside = (torch.tensor([True, False]), None)
    assert VirtualWeights().matrix(FeaturePair(sae, sae, excluded=aside)).tolist() == [[8, 7]]


def test_decoder_cosine_is_that_of_the_rows_whatever_their_norms() -> None:
    a, b = random_sae(10, seed=1), random_sae(14, seed=2)
    scaled = a.replace(W_dec=a.W_dec * torch.arange(10.0)[:, None])
    found = match(scaled, b, similarity=DecoderCosine())
    problem = DecoderCosine().problem(FeaturePair(scaled, b))
    assert problem.left[0].tolist() == [0.0] * 8  # no direction
    cosine = a.W_dec @ torch.nn.functional.normalize(b.W_dec, dim=1).T
    rows = torch.arange(1, 10)
    assert found.gap == 0
    assert torch.allclose(found.confidence[1:], 2 * cosine[rows, found.permutation.indices[1:]] - 2, atol=1e-5)
    assert found.confidence[0] == pytest.approx(-1.0)


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda similarity: similarity.name)
@pytest.mark.parametrize("folding", list(FoldingKind))
@pytest.mark.parametrize("solver", ASSIGNMENTS)
def test_a_planted_permutation_is_found(similarity: Comparison, folding: FoldingKind, solver: str) -> None:
    a, order = tied().replace(threshold=torch.full((12,), 0.5)), shuffled(12, 1)
    found = match(a, permuted(a, order), folding=folding, solver=solver, similarity=similarity).permutation
    assert torch.equal(order[found.indices], torch.arange(12))


@given(seed=st.integers(0, 10**6), name=st.sampled_from(ASSIGNMENTS))
def test_the_order_of_features_means_nothing(seed: int, name: str) -> None:
    a, b, order = tied(9, seed=seed), tied(11, seed=seed + 1), shuffled(11, seed)
    for similarity in SIMILARITIES:
        plain, other = (match(a, side, solver=name, similarity=similarity) for side in (b, permuted(b, order)))
        partners = other.permutation.indices
        assert torch.equal(torch.where(partners < 0, partners, order[partners]), plain.permutation.indices)
        assert torch.allclose(plain.confidence, other.confidence, equal_nan=True, atol=1e-5)


def test_only_virtual_weights_depend_on_folding() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    for similarity in SIMILARITIES:
        keys = [similarity.pair_key(FeaturePair(a, b, folding)) for folding in FoldingKind]
        assert (keys[0] == keys[1]) is isinstance(similarity, DecoderCosine)


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda similarity: similarity.name)
def test_saes_of_other_streams_are_refused(similarity: Comparison) -> None:
    with pytest.raises(UserError, match="d_model 8 and 6"):
        match(random_sae(d=8), random_sae(d=6), similarity=similarity)


def test_limits_to_the_pairs_are_for_distances() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    found = match(a, b, similarity=DecoderCosine(n_pairs=5))
    assert len(found.permutation.matched) == 5
    with pytest.raises(UserError, match="for squared distances"):
        match(a, b, similarity=VirtualWeights(n_pairs=5))


@option
class NotANumber(Similarity):
    """One similarity is none."""

    name: str = "not_a_number"

    def matrix(self, pair: FeaturePair) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0], [torch.nan, 1.0]])


@pytest.mark.parametrize("solver", (*ASSIGNMENTS, "random", "vanilla"))
def test_a_similarity_that_is_no_number_is_refused_whatever_the_assignment(solver: str) -> None:
    sae = random_sae(width=2)
    with pytest.raises(UserError, match="must be finite numbers"):
        match(sae, sae, similarity=NotANumber(), solver=solver)
