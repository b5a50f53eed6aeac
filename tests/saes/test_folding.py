"""Folding (Eq. 4): exactness and refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_match import SparseAutoencoder, UserError, fold
from tests.builders import random_sae


@given(seed=st.integers(0, 10_000), width=st.integers(1, 40), scale=st.floats(1e-3, 1e3))
def test_reconstruction_is_unchanged(seed: int, width: int, scale: float) -> None:
    sae = random_sae(width=width, seed=seed)
    sae = SparseAutoencoder(**{**sae.parameters(), "b_enc": sae.b_enc * scale, "threshold": sae.threshold * scale})
    x = scale * torch.randn(50, 8, generator=torch.Generator().manual_seed(seed))
    before, after = sae(x), fold(sae)(x)
    # A pre-activation within rounding of its threshold may fall on either side: such tokens are left out.
    pre = x @ sae.W_enc + sae.b_enc
    clear = ((pre - sae.threshold).abs() > 1e-5 * sae.threshold).all(dim=1)
    error = (after - before)[clear].norm(dim=1) / before[clear].norm(dim=1)
    assert error.numel() == 0 or float(error.max()) < 1e-6


def test_folded_parameters_by_hand() -> None:
    sae = SparseAutoencoder(
        W_enc=torch.tensor([[2.0, 6.0]]),
        b_enc=torch.tensor([4.0, -3.0]),
        W_dec=torch.tensor([[1.0], [-1.0]]),
        b_dec=torch.tensor([7.0]),
        threshold=torch.tensor([2.0, 3.0]),
    )
    folded = fold(sae)
    assert folded.W_enc.tolist() == [[1.0, 2.0]]
    assert folded.b_enc.tolist() == [2.0, -1.0]
    assert folded.W_dec.tolist() == [[2.0], [-3.0]]
    assert folded.b_dec.tolist() == [7.0]
    assert folded.threshold.tolist() == [1.0, 1.0]
    assert sae.threshold.tolist() == [2.0, 3.0]  # the argument is untouched


def test_folding_twice_changes_nothing() -> None:
    once = fold(random_sae())
    assert fold(once).content_hash == once.content_hash


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_refuses_thresholds_that_are_not_positive(bad: float) -> None:
    sae = random_sae()
    threshold = sae.threshold.clone()
    threshold[[3, 17]] = bad
    with pytest.raises(UserError, match=r"<= 0 at feature 3, 17"):
        fold(SparseAutoencoder(**{**sae.parameters(), "threshold": threshold}))
