"""Seeds of one layer: closed forms, planted twins, and scipy's assignment as a cross-check."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sae_match import SparseAutoencoder, UserError, stability
from sae_match.evaluation.nulls import random_rotation
from sae_match.evaluation.stability import Stability, shared_subspace
from sae_match.saes.site import Site
from tests.builders import permuted, random_sae


def of_rows(rows: torch.Tensor) -> SparseAutoencoder:
    """An SAE with these decoder rows."""
    n, d = rows.shape
    zeros = torch.zeros(n)
    return SparseAutoencoder(W_enc=rows.T, b_enc=zeros, W_dec=rows, b_dec=torch.zeros(d), threshold=zeros + 1)


def shuffled(sae: SparseAutoencoder, seed: int) -> tuple[SparseAutoencoder, torch.Tensor]:
    order = torch.randperm(sae.width, generator=torch.Generator().manual_seed(seed))
    return permuted(sae, order), order


def row(found: Stability, variant: str, a: int = 0, b: int = 1) -> dict[str, float]:
    table = found.to_frame()
    return table[(table.variant == variant) & (table.a == a) & (table.b == b)].iloc[0].to_dict()


def test_the_same_features_in_another_order_and_sign_are_all_shared() -> None:
    a = random_sae(width=50, d=16)
    b, order = shuffled(a, 1)
    flipped = b.replace(W_dec=b.W_dec * torch.where(torch.arange(50) % 2 == 0, 1.0, -2.0)[:, None])
    found = stability([a, flipped])
    seeds = row(found, "seeds")
    assert seeds["pw_mcc"] == pytest.approx(1, abs=1e-6)
    assert (seeds["shared_fraction"], seeds["unstable"]) == (1.0, 0)
    assert math.isnan(seeds["subspace_share"])
    features = found.features()
    assert order[features.partner.tolist()].tolist() == list(range(50))
    assert (found.reappearing(0) == 1).all() and (found.reappearing(1) == 1).all()
    assert features.cosine_rotated.max() < 0.95 and features.cosine_random.mean() < 0.4


def test_unrelated_dictionaries_share_what_the_null_shares() -> None:
    found = stability([random_sae(width=200, d=48, seed=seed) for seed in (1, 2)])
    seeds, rotated, random = (row(found, variant) for variant in ("seeds", "rotated", "random"))
    assert seeds["pw_mcc"] == pytest.approx(rotated["pw_mcc"], abs=0.01)
    # E|cos| of two random directions is about sqrt(2 / (pi d)).
    assert random["pw_mcc"] == pytest.approx(math.sqrt(2 / math.pi / 48), abs=0.02)
    assert seeds["pw_mcc"] > 2 * random["pw_mcc"]
    assert (seeds["shared_fraction"], rotated["shared_fraction"], random["shared_fraction"]) == (0, 0, 0)
    assert seeds["subspace_share"] == pytest.approx(seeds["subspace_share_random"], abs=0.02)


@pytest.mark.parametrize("widths", [(40, 40), (40, 25), (25, 40)])
def test_the_mean_is_that_of_scipys_assignment(widths: tuple[int, int]) -> None:
    a, b = (random_sae(width=width, d=8, seed=seed) for seed, width in enumerate(widths))
    cosines = (a.W_dec @ b.W_dec.T).abs().numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    found = stability([a, b], threshold=0.6)
    seeds = row(found, "seeds")
    assert seeds["pw_mcc"] == pytest.approx(cosines[rows, columns].mean(), abs=1e-6)
    shared = int((cosines[rows, columns] > 0.6).sum())
    assert seeds["shared_fraction"] == pytest.approx(shared / 25 if 25 in widths else shared / 40)
    assert seeds["unstable"] == widths[0] - shared
    features = found.features()
    assert len(features) == widths[0] and features.cosine.isna().sum() == widths[0] - len(rows)
    assert float(found.reappearing(1).sum()) == shared  # the same pairs from the other side
    back = found.features(1)
    assert sorted(back.cosine.dropna()) == pytest.approx(sorted(features.cosine.dropna()))


def test_a_feature_reappears_in_a_share_of_the_other_seeds() -> None:
    """Unit vectors: the second seed has e0 and e1, the third -e0 alone; the others are new directions."""
    e = torch.eye(8)
    a = of_rows(e[:3])
    b = of_rows(torch.stack([e[1], e[5], e[0]]))
    c = of_rows(torch.stack([-e[0], e[6], e[7]]))
    found = stability([a, b, c])
    assert found.reappearing(0).tolist() == [1.0, 0.5, 0.0]
    assert found.reappearing(1).tolist() == [0.5, 0.0, 1.0]
    assert found.reappearing(2).tolist() == [1.0, 0.0, 0.0]
    assert repr(found).split()[:4] == ["a", "b", "variant", "pw_mcc"]
    assert list(found.to_frame()[["a", "b"]].drop_duplicates().itertuples(index=False, name=None)) == [
        (0, 1), (0, 2), (1, 2),
    ]  # fmt: skip
    assert row(found, "seeds")["pw_mcc"] == pytest.approx(2 / 3)
    features = found.features(1)
    assert features.other.tolist() == [0, 0, 0, 2, 2, 2]
    assert features[features.other == 0].partner.tolist()[::2] == [1, 0]


def test_the_shared_subspace_by_hand() -> None:
    """Rows e0, (e0 + e1) / sqrt 2 against e0, e0, e2. Of the second the first direction, e0, holds 2/3 and both hold
    everything; of the first e0 + e1 (turned by 22.5 degrees) holds cos^2 22.5 = 0.854 of the sum of squares."""
    e = torch.eye(5)
    rows, others = torch.stack([e[0], (e[0] + e[1]) / math.sqrt(2)]), torch.stack([e[0], e[0], e[2]])
    wide, narrow = shared_subspace(rows, others, 0.9), shared_subspace(rows, others, 0.6)
    # All of e0, e1 holds 2 of the 3 rows of the second; e0, e2 hold 1 + 1/2 of the 2 rows of the first.
    assert (wide.rank, wide.random) == (2, 2 / 5)
    assert wide.share == pytest.approx((1.5 / 2 + 2 / 3) / 2)
    cos2 = math.cos(math.pi / 8) ** 2
    assert (narrow.rank, narrow.random) == (1, 1 / 5)
    assert narrow.share == pytest.approx((1.5 / 2 + cos2 * 2 / 3) / 2)
    assert math.isnan(shared_subspace(rows[:0], others).share)


def test_the_random_share_is_the_mean_over_random_subspaces() -> None:
    g = torch.Generator().manual_seed(0)
    rows, others = torch.randn(30, 12, generator=g) * torch.linspace(0.1, 3, 12), torch.randn(40, 12, generator=g)
    turned = [shared_subspace(rows, others @ random_rotation(12, seed), 0.5) for seed in range(300)]
    assert np.mean([one.share for one in turned]) == pytest.approx(turned[0].random, abs=0.01)


def test_unstable_features_of_one_subspace_are_told() -> None:
    """Half of the features are shared; the other half are random directions in the same 4 of 40 dimensions."""
    g = torch.Generator().manual_seed(0)
    shared = torch.nn.functional.normalize(torch.randn(20, 40, generator=g), dim=1)
    dense = [torch.cat([torch.randn(20, 4, generator=g), torch.zeros(20, 36)], dim=1) for _ in range(2)]
    one, two = torch.cat([shared, dense[0]]), torch.cat([dense[1], shared])
    found = stability([of_rows(one), of_rows(two)], threshold=0.999, variance=1.0)
    seeds = row(found, "seeds")
    assert (seeds["unstable"], seeds["subspace_rank"], seeds["subspace_share_random"]) == (20, 4, 0.1)
    assert seeds["subspace_share"] == pytest.approx(1, abs=1e-6)


def test_one_initialization_is_told() -> None:
    a = random_sae(width=100, d=16)
    step = torch.randn(100, 16, generator=torch.Generator().manual_seed(1)) / 8
    with pytest.warns(UserWarning, match="SAEs 0 and 1: feature i resembles"):
        found = stability([a, a.replace(W_dec=a.W_dec + step)])
    assert len(found.warnings) == 1


def test_bad_input_is_refused() -> None:
    a = random_sae()
    for saes, options, message in (
        ([a], {}, "at least two SAEs of one layer, got 1"),
        ([a, "b"], {}, "got a str"),
        ([a, random_sae(d=9)], {}, "SAE 1 .* d_model 9, SAE 0 resid_post with 8"),
        ([a, a.replace(site=Site.mlp_out)], {}, "dictionaries of different sites"),
        ([a, random_sae(seed=1)], {"threshold": 1.0}, "threshold=1.0"),
        ([a, random_sae(seed=1)], {"variance": 0.0}, "variance=0.0"),
    ):
        with pytest.raises(UserError, match=message):
            stability(saes, **options)
    with pytest.raises(UserError, match="SAE 2 is outside the list of 2"):
        stability([a, random_sae(seed=1)]).reappearing(2)
