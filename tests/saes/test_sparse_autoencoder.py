"""The SAE and its activations against hand-computed numbers, its hash, and what constructors refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae_match import SparseAutoencoder, UserError, fold, load_sae
from sae_match.saes import Activation, ActivationKind, with_scale
from sae_match.saes.activation import GATED, RELU
from sae_match.saes.site import Site
from tests.builders import identity_sae, random_sae


def hand_sae() -> SparseAutoencoder:
    """d = 2, F = 3."""
    return SparseAutoencoder(
        W_enc=torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, -1.0]]),
        b_enc=torch.tensor([0.0, -1.0, 0.5]),
        W_dec=torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]),
        b_dec=torch.tensor([10.0, 20.0]),
        threshold=torch.tensor([1.0, 0.5, 2.0]),
    )


def test_encode_and_decode_by_hand() -> None:
    x = torch.tensor([[1.0, 1.0], [2.0, -1.0]])
    # pre = [[1, 1, .5], [2, -3, 3.5]]; the first feature's 1.0 is not strictly above its threshold 1.0.
    assert hand_sae().encode(x).tolist() == [[0.0, 1.0, 0.0], [2.0, 0.0, 3.5]]
    assert hand_sae()(x).tolist() == [[10.0, 21.0], [10.0 + 2.0 + 10.5, 20.0 + 14.0]]


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (0, 8)])
def test_any_batch_shape(shape: tuple[int, ...]) -> None:
    sae, x = random_sae(), torch.randn(shape)
    assert sae.encode(x).shape == (*shape[:-1], 24)
    torch.testing.assert_close(sae(x).reshape(-1, 8), sae(x.reshape(-1, 8)))


def test_half_precision_input_is_computed_in_float32() -> None:
    sae, x = random_sae(), torch.randn(5, 8).to(torch.bfloat16)
    assert sae(x).dtype == torch.float32
    torch.testing.assert_close(sae(x), sae(x.float()), rtol=0, atol=0)


def test_identity_sae_reconstructs_exactly() -> None:
    x = torch.randn(7, 4)
    assert torch.equal(identity_sae(4)(x), x)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("W_dec", torch.zeros(2, 3), "W_dec has shape (2, 3), expected (3, 2)"),
        ("b_enc", torch.zeros(2), "b_enc has shape (2,), expected (3,)"),
        ("threshold", torch.ones(3, dtype=torch.int64), "threshold must be a floating-point tensor"),
        (
            "W_enc",
            torch.tensor([[1.0, 2.0, float("nan")], [0.0, 0.0, 0.0]]),
            "W_enc holds NaN or infinity at feature 2",
        ),
        ("W_dec", torch.tensor([[1.0, 0], [float("inf"), 0], [0, 1]]), "W_dec holds NaN or infinity at feature 1"),
        ("b_dec", torch.tensor([0.0, float("nan")]), "b_dec holds NaN or infinity at dimension 1"),
    ],
)
def test_constructor_refuses(name: str, value: torch.Tensor, message: str) -> None:
    parameters = {**hand_sae().parameters(), name: value}
    with pytest.raises(UserError) as error:
        SparseAutoencoder(**parameters, source="file.npz")
    assert message in str(error.value)
    assert "file.npz" in str(error.value)


def test_content_hash_follows_content_only() -> None:
    assert random_sae(seed=1).content_hash == random_sae(seed=1).content_hash
    assert random_sae(seed=1).content_hash != random_sae(seed=2).content_hash
    parameters = hand_sae().parameters()
    changed = {**parameters, "b_dec": parameters["b_dec"] + 1e-3}
    assert SparseAutoencoder(**changed).content_hash != hand_sae().content_hash


TOPK = Activation(ActivationKind.topk, k=2, stored_threshold=0.7)


def three_features(**facts: Any) -> SparseAutoencoder:
    """d = 1, F = 3: pre = (x, -x, 2x + 1)."""
    return SparseAutoencoder(
        W_enc=torch.tensor([[1.0, -1.0, 2.0]]),
        b_enc=torch.tensor([0.0, 0.0, 1.0]),
        W_dec=torch.ones(3, 1),
        b_dec=torch.zeros(1),
        **{"threshold": torch.zeros(3), **facts},
    )


def test_relu_by_hand() -> None:
    sae = three_features(activation=RELU)
    assert sae.encode(torch.tensor([[2.0], [-1.0]])).tolist() == [[2.0, 0.0, 5.0], [0.0, 1.0, 0.0]]


def test_topk_by_hand() -> None:
    one = three_features(activation=Activation(ActivationKind.topk, k=1))
    assert one.encode(torch.tensor([[2.0], [-1.0], [-3.0]])).tolist() == [[0, 0, 5.0], [0, 1.0, 0], [0, 3.0, 0]]
    # The second largest of x = -1 is -1: among the k, but never active.
    assert three_features(activation=TOPK).encode(torch.tensor([-1.0])).tolist() == [0.0, 1.0, 0.0]


def test_topk_of_any_batch_shape_has_at_most_k_active() -> None:
    sae = random_sae().replace(activation=Activation(ActivationKind.topk, k=3))
    f = sae.encode(torch.randn(2, 5, 8))
    assert f.shape == (2, 5, 24)
    assert int((f > 0).sum(dim=-1).max()) == 3


def test_hash_of_a_jumprelu_sae_is_what_it_always_was() -> None:
    embedded = load_sae("embedded/smollm2_135m/layer_10.safetensors")
    assert embedded.content_hash == "0e5a7a97c5445e5891b7d7570af3cb9f986f72e014b655ae3ccc9bf2275233bf"


def test_hash_changes_with_the_activation_and_with_nothing_else() -> None:
    sae = random_sae()
    others = [TOPK, Activation(ActivationKind.topk, k=3), Activation(normalization="layer_norm")]
    hashes = {sae.content_hash, *(sae.replace(activation=activation).content_hash for activation in others)}
    assert len(hashes) == 4
    # A gated SAE is the JumpReLU SAE with these thresholds; site and scale are not what the SAE computes.
    same = sae.replace(activation=GATED, site=Site.mlp_out, scale=torch.ones(24), source="elsewhere")
    assert same.content_hash == sae.content_hash


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"kind": ActivationKind.topk}, "topk needs a positive k"),
        ({"kind": ActivationKind.topk, "k": 0}, "topk needs a positive k"),
        ({"kind": ActivationKind.relu, "k": 3}, "others have none"),
        ({"stored_threshold": -1.0}, "stored threshold -1.0: must be positive"),
    ],
)
def test_impossible_activations(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Activation(**facts)


def test_k_must_not_exceed_the_width() -> None:
    with pytest.raises(UserError, match="k=25 of 24 features"):
        random_sae().replace(activation=Activation(ActivationKind.topk, k=25))


@pytest.mark.parametrize(
    "activation", [Activation(normalization="layer_norm"), Activation(ActivationKind.batch_topk, k=3)]
)
def test_what_cannot_be_encoded_still_matches(activation: Activation) -> None:
    sae = random_sae().replace(activation=activation)
    with pytest.raises(UserError, match="cannot encode, because"):
        sae.encode(torch.randn(3, 8))
    torch.testing.assert_close(fold(sae).W_dec, fold(random_sae()).W_dec)


def test_a_folded_topk_sae_never_encodes() -> None:
    folded = fold(with_scale(random_sae().replace(activation=TOPK), "stored"))
    with pytest.raises(UserError, match="rescaling changes which features of a TopK SAE are the k largest"):
        folded(torch.randn(3, 8))
    torch.testing.assert_close(folded.W_dec, 0.7 * random_sae().W_dec)


def test_replace_and_device_moves_keep_the_facts() -> None:
    sae = random_sae().replace(activation=TOPK, site=Site.attn_out, scale=torch.ones(24), match_only="so")
    for other in (sae.to("cpu"), sae.to("cpu:0"), sae.replace(source="x")):
        assert (other.activation, other.site, other.match_only) == (TOPK, Site.attn_out, "so")
        assert other.scale is not None


def test_it_prints_as_one_short_line() -> None:
    sae = random_sae().replace(source="folder/" * 40 + "layer_03.safetensors", activation=TOPK)
    assert repr(sae).startswith("SparseAutoencoder(d_model=8, width=24, topk k=2, resid_post, '...")
    assert repr(sae).endswith("layer_03.safetensors')") and len(repr(sae)) < 120
