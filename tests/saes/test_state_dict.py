"""SAEs from state dicts: what the tensors do not say is asked for, and the result computes what its owner computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from torch import Tensor

from sae_match import SparseAutoencoder, UserError, load_sae, match
from tests.builders import random_sae
from tests.saes.layouts import D, F, K, dictionary_state, random_tensors, write_saelens

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"architecture": "standard"}, {"activation": "relu"}),
    ({"architecture": "jumprelu"}, {"activation": "jumprelu"}),
    ({"architecture": "gated"}, {"activation": "gated"}),
    *(
        (
            {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": rescales},
            {"activation": "topk", "k": K, "rescales_by_decoder_norm": rescales},
        )
        for rescales in (True, False)
    ),
]


def inputs() -> Tensor:
    return torch.randn(400, D, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize(("cfg", "said"), CASES)
def test_sae_lens_in_memory(tmp_path: Path, cfg: dict[str, Any], said: dict[str, Any], subtracts: bool) -> None:
    folder = write_saelens(tmp_path, cfg | {"apply_b_dec_to_input": subtracts, "hook_name": "blocks.1.hook_resid_post"})
    theirs = SAE.load_from_disk(folder).eval()
    ours = SparseAutoencoder.from_state_dict(theirs.state_dict(), subtracts_b_dec=subtracts, **said)
    torch.testing.assert_close(ours.encode(inputs()), theirs.encode(inputs()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(inputs()), theirs(inputs()), rtol=1e-5, atol=1e-5)
    assert float((ours.encode(inputs()) > 0).float().mean()) > 0.05
    assert ours.content_hash == load_sae(folder).content_hash


def test_linear_layers_of_dictionary_learning() -> None:
    state = {name: t for name, t in dictionary_state("AutoEncoderTopK").items() if name not in ("k", "threshold")}
    ours = SparseAutoencoder.from_state_dict(
        state, activation="topk", k=K, subtracts_b_dec=True, rescales_by_decoder_norm=False
    )
    t = random_tensors()
    pre = torch.relu((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])  # AutoEncoderTopK.encode
    top = pre.topk(K, sorted=False)
    torch.testing.assert_close(
        ours.encode(inputs()), torch.zeros_like(pre).scatter_(-1, top.indices, top.values), rtol=1e-5, atol=1e-5
    )


def test_one_threshold_for_all_features_and_half_precision() -> None:
    t = random_tensors()
    state = {name: v.to(torch.bfloat16) for name, v in t.items()} | {"threshold": torch.tensor(0.5)}
    ours = SparseAutoencoder.from_state_dict(state, activation="jumprelu", subtracts_b_dec=True)
    assert ours.threshold.tolist() == [0.5] * F
    exact = {name: v.to(torch.bfloat16).float() for name, v in t.items()}
    torch.testing.assert_close(ours.b_enc, exact["b_enc"] - exact["b_dec"] @ exact["W_enc"])


WITHOUT = {name: t for name, t in random_tensors().items() if name != "threshold"}


@pytest.mark.parametrize(
    ("state", "said", "message"),
    [
        (WITHOUT, {"activation": "jumprelu"}, "missing: threshold; unknown: none"),
        (random_tensors(), {"activation": "relu"}, "missing: none; unknown: threshold"),
        (WITHOUT, {"activation": "topk", "rescales_by_decoder_norm": False}, "topk needs a positive k"),
        (WITHOUT, {"activation": "topk", "k": 3}, "rescales_by_decoder_norm=True or False"),
        (WITHOUT, {"activation": "relu", "k": 3}, "others have none"),
        (WITHOUT, {"activation": "swish"}, "activations: jumprelu, relu, gated, topk"),
        (WITHOUT | {"b_enc": [0.0]}, {"activation": "relu"}, "b_enc must be a floating-point tensor, got list"),
        (WITHOUT | {"W_dec": torch.zeros(D, F)}, {"activation": "relu"}, r"W_dec has shape \(8, 24\)"),
    ],
)
def test_nothing_is_guessed(state: dict[str, Any], said: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SparseAutoencoder.from_state_dict(state, subtracts_b_dec=False, **said)


def test_the_constructor_and_the_functions_point_to_it(tmp_path: Path) -> None:
    theirs = SAE.load_from_disk(write_saelens(tmp_path, {"architecture": "standard", "hook_name": "x"}))
    with pytest.raises(UserError, match=r"no threshold.*from_state_dict"):
        SparseAutoencoder(**theirs.state_dict())
    for call in (lambda: load_sae(theirs), lambda: match(theirs, random_sae()), lambda: match(random_sae(), theirs)):  # type: ignore[arg-type]
        with pytest.raises(UserError, match="from_state_dict"):
            call()
