"""Chains of matchings: planted permutations are recovered through any number of steps, in both directions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sae_match import SparseAutoencoder, UserError, match
from sae_match.matching import match_chain
from tests.builders import permuted, random_sae


def planted_chain(length: int, width: int = 60) -> tuple[list[SparseAutoencoder], list[torch.Tensor]]:
    """SAEs that are permutations of one another; `places[t][f]` is where feature f of the first sits in SAE t."""
    saes, places = [random_sae(width=width, d=8)], [torch.arange(width)]
    for t in range(1, length):
        order = torch.randperm(width, generator=torch.Generator().manual_seed(t))
        saes.append(permuted(saes[-1], order))
        places.append(torch.argsort(order)[places[-1]])
    return saes, places


def test_composed_permutations_equal_the_planted_ones() -> None:
    saes, places = planted_chain(5)
    chain = match_chain(saes, metric="both")
    assert len(chain) == 5
    for start in range(5):
        for stop in range(5):
            composed = chain.between(start, stop)
            assert torch.equal(composed.indices[places[start]], places[stop])
    assert chain.path(7) == [int(places[t][7]) for t in range(5)]
    assert chain.path(int(places[2][7]), start=2) == [int(places[t][7]) for t in range(2, 5)]


def test_a_feature_without_a_partner_ends_its_path() -> None:
    wide, narrow = random_sae(width=30, d=6, seed=1), random_sae(width=20, d=6, seed=2)
    chain = match_chain([narrow, wide, narrow])
    lost = (chain.between(1, 2).indices == -1).nonzero().flatten()
    assert len(lost) == 10
    assert chain.path(int(lost[0]), start=1) == [int(lost[0])]
    through = chain.between(0, 2)
    assert len(through.matched) == sum(len(chain.path(f)) == 3 for f in range(20))


def test_saes_are_read_one_at_a_time() -> None:
    held: list[int] = []

    def read() -> Iterator[SparseAutoencoder]:
        for t in range(3):
            held.append(t)
            yield random_sae(width=10, d=4, seed=t)

    assert len(match_chain(read())) == 3
    assert held == [0, 1, 2]


def test_impossible_requests_are_refused() -> None:
    chain = match_chain([random_sae(width=10, d=4, seed=t) for t in range(2)])
    with pytest.raises(UserError, match="at least two"):
        match_chain([random_sae()])
    for call in (lambda: chain.between(0, 2), lambda: chain.path(0, start=-1), lambda: chain.path(10)):
        with pytest.raises(UserError, match="outside"):
            call()


def test_a_chain_knows_its_layers() -> None:
    saes, places = planted_chain(3)
    chain = match_chain(saes, layers=[12, 13, 14])
    assert torch.equal(chain.between(12, 14).indices[places[0]], places[2])
    assert torch.equal(chain.between(14, 13).indices[places[2]], places[1])
    assert chain.path(7) == chain.path(7, start=12) == [int(places[t][7]) for t in range(3)]
    assert chain.path(int(places[1][7]), start=13) == [int(places[t][7]) for t in range(1, 3)]
    with pytest.raises(UserError, match=r"layer 1 is outside the chain of 3 SAEs \(12..14\)"):
        chain.path(7, start=1)
    with pytest.raises(UserError, match="one layer for each of the 3 SAEs"):
        match_chain(saes, layers=[12, 13])
    with pytest.raises(UserError, match="each layer once"):
        match_chain(saes, layers=[12, 12, 13])


def test_a_pair_beside_its_partner() -> None:
    a = random_sae(width=10, d=4, seed=1)
    b = permuted(a, torch.randperm(10, generator=torch.Generator().manual_seed(2)))
    b = b.replace(b_enc=b.b_enc + 0.5 * b.threshold)  # folded, theta divides: a difference of 0.5 everywhere
    matching = match(a, b, n_pairs=9)
    for feature in range(10):
        found = matching.pair(feature, a, b)
        assert found["feature"] == feature
        if int(matching.permutation.indices[feature]) < 0:
            assert found == {"feature": feature, "partner": None}
            continue
        assert found["partner"] == int(matching.permutation.indices[feature])
        assert found["decoder_cosine"] == pytest.approx(1)
        assert found["W_enc"] == found["W_dec"] == pytest.approx(0, abs=1e-12)
        assert found["b_enc"] == pytest.approx(0.25, rel=1e-5)
    with pytest.raises(UserError, match=r"outside 0..9"):
        matching.pair(10, a, b)
