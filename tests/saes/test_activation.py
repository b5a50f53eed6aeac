"""Activations other than JumpReLU: by hand, in the content hash, through native files, and where they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_match import SparseAutoencoder, UserError, fold, load_sae
from sae_match.saes import Activation, ActivationKind, save_native, with_scale
from sae_match.saes.activation import GATED, RELU
from sae_match.saes.formats.native import FORMAT
from sae_match.saes.formats.reading import read_metadata
from sae_match.saes.site import Site
from tests.builders import random_sae

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
    embedded = load_sae("embedded/smollm2_135m/layer_13.safetensors")
    assert embedded.content_hash == "bcae3364fae41402650fe1ba28b6314daaf8fbde21a12e2287df5b4bbc0ec5ea"


def test_hash_changes_with_the_activation_and_with_nothing_else() -> None:
    sae = random_sae()
    others = [TOPK, Activation(ActivationKind.topk, k=3), Activation(normalization="layer_norm")]
    hashes = {sae.content_hash, *(sae.replace(activation=activation).content_hash for activation in others)}
    assert len(hashes) == 4
    # A gated SAE is the JumpReLU SAE with these thresholds; site and scale are not what the SAE computes.
    same = sae.replace(activation=GATED, site=Site.mlp_out, scale=torch.ones(24), source="elsewhere")
    assert same.content_hash == sae.content_hash


@pytest.mark.parametrize(
    "facts",
    [
        {"activation": RELU, "threshold": torch.zeros(24)},
        {"activation": TOPK, "threshold": torch.zeros(24)},
        {"activation": GATED},
        {"activation": Activation(normalization="constant_norm_rescale")},
        {"site": Site.mlp_out},
        {"scale": 0.5 + torch.rand(24)},
        {"match_only": "a test says so"},
    ],
    ids=["relu", "topk", "gated", "normalised", "site", "scale", "match_only"],
)
def test_native_files_carry_the_facts(tmp_path: Path, facts: dict[str, Any]) -> None:
    sae = random_sae().replace(**facts)
    save_native(sae, tmp_path / "sae.safetensors", {"licence": "MIT"})
    back = load_sae(tmp_path / "sae.safetensors")
    assert (back.activation, back.site, back.match_only) == (sae.activation, sae.site, sae.match_only)
    assert back.content_hash == sae.content_hash
    assert (back.scale is None) == (sae.scale is None)
    assert back.scale is None or torch.equal(back.scale, facts["scale"])


def test_a_plain_native_file_is_written_as_before(tmp_path: Path) -> None:
    save_native(random_sae(), tmp_path / "sae.safetensors")
    assert read_metadata(tmp_path / "sae.safetensors") == {"format": FORMAT}


def test_wrong_native_metadata(tmp_path: Path) -> None:
    metadata = {"format": "sae_match.sae.v2", "activation": "swish", "k": "", "stored_threshold": ""}
    save_file(random_sae().parameters(), tmp_path / "sae.safetensors", metadata | {"normalization": "none"})
    with pytest.raises(UserError, match=r"metadata of format sae_match\.sae\.v2.*swish"):
        load_sae(tmp_path / "sae.safetensors")


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
