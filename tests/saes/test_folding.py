"""Folding (Eq. 4) and what is theta where there are no thresholds: exactness, invariances, refusals."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_match import SparseAutoencoder, UserError, fold, match
from sae_match.metrics.weight_distance import weight_distances
from sae_match.saes import Activation, ActivationKind, measure_scale, with_scale
from sae_match.saes.activation import RELU
from sae_match.saes.folding import nth_largest
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


K = 4


def relu_sae(seed: int = 0) -> SparseAutoencoder:
    """A ReLU SAE with decoder rows of norm 0.5 to 2.5."""
    sae, norms = random_sae(seed=seed), 0.5 + 2 * torch.rand(24, 1, generator=torch.Generator().manual_seed(seed))
    return sae.replace(activation=RELU, threshold=torch.zeros(24), W_dec=sae.W_dec * norms)


def topk_sae(seed: int = 0) -> SparseAutoencoder:
    return relu_sae(seed).replace(activation=Activation(ActivationKind.topk, k=K))


def streams(seed: int = 5) -> torch.Tensor:
    return torch.randn(6, 10, 8, generator=torch.Generator().manual_seed(seed))


def test_auto_is_the_threshold_or_an_error_that_lists_the_choices() -> None:
    sae = random_sae()
    assert with_scale(sae, "auto") is sae
    assert fold(with_scale(sae, "threshold")).content_hash == fold(sae).content_hash
    for choice in ("auto", "threshold"):
        with pytest.raises(
            UserError, match=r"relu.*<= 0 at feature 0.*stored.*estimated.*mean_activation.*decoder_norm"
        ):
            with_scale(relu_sae(), choice)
    with pytest.raises(UserError, match=r"folding\.scale=stored"):
        fold(relu_sae())


def test_decoder_norm_gives_unit_rows_and_keeps_the_reconstruction() -> None:
    sae, x = relu_sae(), streams()
    folded = fold(with_scale(sae, "decoder_norm"))
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(24))
    torch.testing.assert_close(folded(x), sae(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fold(folded).W_dec, folded.W_dec, rtol=0, atol=0)


def test_any_scale_keeps_a_jumprelu_sae_the_same_function() -> None:
    sae, x = random_sae(), streams()
    folded = fold(sae.replace(scale=torch.rand(24) + 0.5))
    torch.testing.assert_close(folded(x), sae(x), rtol=1e-5, atol=1e-5)
    assert float((folded.encode(x) > 0).float().mean()) == float((sae.encode(x) > 0).float().mean()) > 0


@pytest.mark.parametrize("choice", ["decoder_norm", "estimated", "mean_activation", "max_activation"])
def test_folded_weights_do_not_depend_on_how_features_were_scaled(choice: str) -> None:
    """Eq. 4 with any of these scales is invariant under per-feature rescaling of the SAE."""
    sae, c = relu_sae(), 0.2 + 3 * torch.rand(24)
    rescaled = sae.replace(W_enc=sae.W_enc * c, b_enc=sae.b_enc * c, W_dec=sae.W_dec / c[:, None])

    def folded(s: SparseAutoencoder) -> SparseAutoencoder:
        return fold(with_scale(s, choice) if choice == "decoder_norm" else measure_scale(s, choice, streams(), k=3))

    torch.testing.assert_close(folded(rescaled).W_enc, folded(sae).W_enc, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(folded(rescaled).W_dec, folded(sae).W_dec, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_estimated_lets_k_features_per_token_through(batch: int) -> None:
    sae, x = topk_sae(), streams()
    scaled = measure_scale(sae, "estimated", x, batch_windows=batch, sink_positions=2)
    pre = x[:, 2:] @ sae.W_enc + sae.b_enc
    tokens = 6 * 8
    assert int((pre >= scaled.theta * (1 - 1e-6)).sum()) == K * tokens
    norms = sae.W_dec.norm(dim=1)
    tau = (pre * norms).flatten().sort(descending=True).values[K * tokens - 1]
    torch.testing.assert_close(scaled.theta, tau / norms)


def test_mean_and_max_activation_by_definition(caplog: pytest.LogCaptureFixture) -> None:
    x, sae = streams(), relu_sae()
    sae = sae.replace(b_enc=sae.b_enc - torch.where(torch.arange(24) == 7, 1e6, 0.0))  # feature 7 never fires
    f = sae.encode(x[:, 1:]).flatten(0, 1)
    fires = torch.arange(24) != 7
    mean, largest = f.sum(dim=0) / (f > 0).sum(dim=0), f.amax(dim=0)
    with caplog.at_level(logging.WARNING):
        found_mean = measure_scale(sae, "mean_activation", x, batch_windows=4).theta
    found_max = measure_scale(sae, "max_activation", x).theta
    torch.testing.assert_close(found_mean[fires], mean[fires])
    torch.testing.assert_close(found_max[fires], largest[fires])
    torch.testing.assert_close(found_mean[7], mean[fires].median())
    assert "1 features never fire" in caplog.text


@given(n=st.integers(1, 30), parts=st.lists(st.lists(st.integers(-5, 5), max_size=20), max_size=8))
def test_largest_values_of_a_stream(n: int, parts: list[list[int]]) -> None:
    found = nth_largest((torch.tensor(part, dtype=torch.float32) for part in parts), n)
    everything = sorted((float(v) for part in parts for v in part), reverse=True)
    assert found == (everything[n - 1] if len(everything) >= n else None)


def test_refusals() -> None:
    x, sae = streams(), relu_sae()
    for call, message in [
        (lambda: with_scale(sae, "biggest"), r"folding\.scale=biggest: must be one of auto, threshold"),
        (lambda: with_scale(sae, "estimated"), "measured on activations"),
        (lambda: with_scale(sae, "stored"), "stores no threshold beside its relu"),
        (lambda: measure_scale(sae, "stored", x), "only estimated, mean_activation, max_activation are measured"),
        (lambda: measure_scale(sae, "estimated", x), r"needs folding\.k"),
        (lambda: measure_scale(sae, "estimated", x, k=24), "fewer than k=24 pre-activations per token are positive"),
        (lambda: measure_scale(sae.replace(match_only="no"), "estimated", x, k=1), "but no"),
        (lambda: measure_scale(sae.replace(b_enc=sae.b_enc - 1e6), "max_activation", x), "no feature fires"),
        (lambda: sae.replace(scale=torch.zeros(24)), r"scale must be positive, but is not at feature 0, 1"),
        (lambda: sae.replace(scale=torch.ones(3)), r"scale has shape \(3,\), expected \(24,\)"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_topk_saes_match_by_their_scaled_copies() -> None:
    a = with_scale(topk_sae(), "decoder_norm")
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    moved = {n: (t[:, order] if n == "W_enc" else t if n == "b_dec" else t[order]) for n, t in a.parameters().items()}
    b = with_scale(a.replace(**moved, scale=None), "decoder_norm")
    matching = match(a, b)
    assert torch.equal(order[matching.permutation.indices], torch.arange(24))
    assert weight_distances(a, b, matching.permutation).mse["W_dec"].mean() < 1e-12
