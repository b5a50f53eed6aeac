"""SAEs that are what they are taken for give no warning; each way to misread one is named."""

from __future__ import annotations

import warnings

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match import Permutation, SparseAutoencoder, evaluate_pair
from sae_match.evaluation.sanity import check_activity, check_encoding, measure, sample, stated_l0
from sae_match.saes import Activation, ActivationKind
from sae_match.saes.activation import RELU
from tests.builders import random_sae

D, LAYERS = 32, range(4)


def rows(layer: int) -> Float[Tensor, "d d"]:
    """An orthonormal basis that turns a little from layer to layer."""
    g = torch.Generator().manual_seed(0)
    turn = torch.randn(D, D, generator=g) / D**0.5
    return torch.linalg.matrix_exp(0.25 * layer * (turn - turn.T)) @ torch.linalg.qr(torch.randn(D, D, generator=g)).Q


def center(layer: int) -> Float[Tensor, " d"]:
    return 3 * rows(layer).sum(dim=0) + layer


def made(layer: int) -> Float[Tensor, "windows tokens d"]:
    """The stream of a layer: sparse sums of its rows, and a center."""
    g = torch.Generator().manual_seed(1)
    f = (1 + torch.rand(8, 40, D, generator=g)) * (torch.rand(8, 40, D, generator=g) < 0.2)
    return f @ rows(layer) + center(layer)


def right(layer: int) -> SparseAutoencoder:
    """Exact on its layer: f_i is what row i contributes."""
    W_dec, b_dec = rows(layer), center(layer)
    threshold = torch.full((D,), 0.5)
    return SparseAutoencoder(W_enc=W_dec.T, b_enc=-b_dec @ W_dec.T, W_dec=W_dec, b_dec=b_dec, threshold=threshold)


def told(sae: SparseAutoencoder, layer: int = 2) -> list[str]:
    return check_encoding(sae, made, layer, LAYERS, sink_positions=1)


def test_the_right_sae_is_right() -> None:
    fit = measure(right(2), sample(made(2)))
    assert fit.r2 == pytest.approx(1, abs=1e-6)
    assert fit.l0 == pytest.approx(0.2 * D, rel=0.1)
    assert [told(right(layer), layer) for layer in LAYERS] == [[]] * 4
    assert told(right(2).replace(stated_l0=10)) == []


@pytest.mark.parametrize(
    ("is_of", "taken_for", "cause"),
    [(1, 2, "reads the input of block 2 (hook_resid_pre)"), (3, 2, "another layer's SAE"), (0, 3, "layer's SAE")],
)
def test_another_layer_is_named(is_of: int, taken_for: int, cause: str) -> None:
    (message,) = told(right(is_of), taken_for)
    assert message.startswith(f"layer {taken_for}: the SAE explains layer {is_of} (R² 1.00) better than its own (R² ")
    assert f"{cause}; read so, its R² is 1.00" in message


def test_evaluate_pair_warns() -> None:
    a, b = right(1), right(2)
    permutation = Permutation.identity(D)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        evaluate_pair(a, b, permutation, made(1), made(2), layers=(1, 2))
        tokens = [made(layer).flatten(0, 1).numpy() for layer in (1, 2)]
        evaluate_pair(a, b, permutation, *tokens, layers=(1, 2))
    with pytest.warns(UserWarning, match=r"layer 2: the SAE explains layer 1 .* reads the input of block 2"):
        evaluate_pair(a, a, permutation, made(1), made(2), layers=(1, 2))


@pytest.mark.parametrize(("shape", "n"), [((8, 40, 4), 312), ((300, 128, 4), 1024), ((5000, 1, 4), 1024)])
def test_the_sample_is_spread_over_all_windows(shape: tuple[int, ...], n: int) -> None:
    x = torch.arange(shape[0]).view(-1, 1, 1).expand(shape).float()
    sinks = int(shape[1] > 1)
    found = sample(x, sinks)
    assert len(found) == n
    assert (float(found.min()), float(found.max())) == (0, shape[0] - 1)


def misread() -> dict[str, SparseAutoencoder]:
    sae = right(2)
    s = D**0.5 / float(sample(made(2)).norm(dim=1).mean())
    norms, shift = torch.linspace(1.5, 9, D), sae.b_dec @ sae.W_enc
    rescaled = sae.replace(W_enc=sae.W_enc / norms, b_enc=sae.b_enc / norms, W_dec=sae.W_dec * norms[:, None])
    # What does not fire has a pre-activation of 0.4.
    positive = sae.replace(b_enc=sae.b_enc + 0.4, threshold=torch.zeros(D), activation=RELU)
    return {
        "missing normalization (expected_average_only_in); read so, its R² is 1.00": sae.replace(
            W_enc=sae.W_enc / s, W_dec=sae.W_dec * s, b_dec=sae.b_dec * s
        ),
        "decoder norms that are not folded into the thresholds; read so, its R² is 1.00": rescaled,
        "b_dec is to be subtracted from the input; read so, its R² is 1.00": sae.replace(b_enc=sae.b_enc + shift),
        "b_dec is not to be subtracted from the input; read so, its R² is 1.00": sae.replace(b_enc=sae.b_enc - shift),
        "a TopK SAE (k = 16) read as ReLU": positive,
        "a TopK SAE (k = 6) read as ReLU": positive.replace(stated_l0=6),
        "an SAE of another L0": sae.replace(stated_l0=20),
        "an SAE of another layer, hook point or model": random_sae(2 * D, D),
    }


@pytest.mark.parametrize("cause", misread())
def test_misreadings_are_named(cause: str) -> None:
    (message,) = told(misread()[cause])
    assert message.startswith("layer 2: the SAE ")
    assert f"Likely cause: {cause}" in message


def test_topk_that_ranks_without_decoder_norms() -> None:
    sae, norms = right(2), torch.logspace(-2, 2, D)
    biased = sae.replace(b_enc=sae.b_enc + 0.4, threshold=torch.zeros(D))
    ranked = biased.replace(activation=Activation(ActivationKind.topk, k=8))
    assert told(ranked) == []
    (message,) = told(
        ranked.replace(W_enc=sae.W_enc / norms, b_enc=ranked.b_enc / norms, W_dec=sae.W_dec * norms[:, None])
    )
    assert "decoder norms that are not folded into the encoder, by which features are ranked" in message


@pytest.mark.parametrize(
    ("source", "stated"),
    [
        ("/data/layer_3/width_16k/average_l0_59/params.npz", 59),
        ("layer_14_l0_16.safetensors (folded)", 16),
        ("layer_3_width_16k_l0_small/params.safetensors", None),
        ("layer_03.safetensors", None),
    ],
)
def test_the_name_states_the_l0(source: str, stated: int | None) -> None:
    assert stated_l0(right(0).replace(source=source)) == stated
    top = right(0).replace(activation=Activation(ActivationKind.topk, k=5), source=source)
    assert stated_l0(top) == 5
    assert stated_l0(top.replace(stated_l0=7)) == 7


def test_dead_features() -> None:
    active, tokens = torch.tensor([[900, 0, 0, 0], [100, 0, 0, 0]]), torch.tensor([600, 400])
    (message,) = check_activity(5, active, tokens)
    assert message.startswith("layer 5: 75 % of the features never fire on 1000 tokens, and one fires 250 times")
    assert check_activity(5, active // 10, tokens) == []  # too little text to tell
    assert check_activity(5, active + torch.tensor([0, 1, 0, 0]), tokens) == []  # half of them
