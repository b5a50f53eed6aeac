"""The SAE against hand-computed numbers, and what its constructor refuses."""

from __future__ import annotations

import pytest
import torch

from sae_match import SparseAutoencoder, UserError
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
