"""Files of tensors with a convention that options say, cross-layer transcoders and temporal SAEs, by definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sae_match import SparseAutoencoder, UserError, load_sae
from sae_match.saes import Convention, SaeSource, Site
from sae_match.saes.formats.cross_layer import CrossLayerTranscoder
from sae_match.saes.formats.state_dict import StateDict
from tests.saes.layouts import (
    D,
    F,
    K,
    random_tensors,
    write_cross_layer,
    write_state_dict,
    write_temporal,
    write_tensors,
)
from tests.saes.test_release_files import LINEAR, inputs


def state_dicts(**fields: Any) -> StateDict:
    convention = {"activation": "relu", "subtracts_b_dec": False, "last_layer": 30}
    return StateDict(name="test", **convention | fields)


@torch.no_grad()
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("turned", [True, False])
def test_state_dicts_by_definition(tmp_path: Path, name: str, turned: bool) -> None:
    """Axes follow from the biases, whichever way the file holds the matrices."""
    path, t = write_state_dict(tmp_path / name, LINEAR, turned), random_tensors()
    sae = load_sae(path, dialect=state_dicts(activation="topk", k=K, subtracts_b_dec=True, site="resid_post"))
    values, indices = torch.relu((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).topk(K, dim=-1)
    expected = (values[..., None] * t["W_dec"][indices]).sum(dim=1) + t["b_dec"]
    torch.testing.assert_close(sae(inputs()), expected, rtol=1e-5, atol=1e-5)
    header = state_dicts(site="resid_post").header(path, 3)
    assert (header.d_model, header.width, header.site, header.foldable) == (D, F, Site.resid_post, False)


@pytest.mark.parametrize(
    ("tensors", "fields", "message"),
    [
        ({"W_skip": torch.eye(D)}, {}, "unknown: W_skip"),
        ({"b_enc": torch.zeros(D)}, {}, "which tell the axes of the matrices apart"),
        ({"W_dec": torch.zeros(F, F)}, {}, r"W_dec has shape \(24, 24\), expected \(24, 8\) or its transpose"),
        ({}, {"activation": "jumprelu"}, "missing: threshold"),
    ],
)
def test_state_dicts_that_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], fields: dict[str, Any], message: str
) -> None:
    plain = {name: t for name, t in random_tensors().items() if name != "threshold"}
    path = write_tensors(tmp_path / "a.safetensors", plain | tensors)
    with pytest.raises(UserError, match=message):
        load_sae(path, dialect=state_dicts(**fields))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_entries_are_left_out_where_that_is_said(tmp_path: Path, suffix: str) -> None:
    plain = {name: t for name, t in random_tensors().items() if name != "threshold"}
    other: dict[str, Any] = {"threshold": torch.zeros(F)} | ({"k": 50, "model": "Qwen"} if suffix == ".pt" else {})
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save(plain | other, path)
    else:
        write_tensors(path, plain | other)
    with pytest.raises(UserError, match=r"unknown: threshold|expected a state dict of tensors"):
        load_sae(path, dialect=state_dicts())
    sae = load_sae(path, dialect=state_dicts(ignores_others=True))
    assert sae.content_hash == SparseAutoencoder(**plain, threshold=torch.zeros(F)).content_hash


def test_conventions_that_are_incomplete() -> None:
    for fields in ({"activation": "topk"}, {"activation": "batch_topk"}, {"k": 3}):
        with pytest.raises(UserError, match="topk needs a positive k, others have none"):
            state_dicts(**fields)
    with pytest.raises(ValidationError, match="jumprelu"):
        state_dicts(activation="tanh")
    with pytest.raises(UserError, match=r"sae\.filename is not set"):
        state_dicts().files(3)


def test_cross_layer_transcoders(tmp_path: Path) -> None:
    sae, jump = load_sae(write_cross_layer(tmp_path)), load_sae(write_cross_layer(tmp_path / "j", threshold=True))
    assert (sae.activation.kind.value, jump.activation.kind.value) == ("relu", "jumprelu")
    torch.testing.assert_close(jump.threshold, random_tensors(3)["threshold"])
    source = SaeSource(CrossLayerTranscoder(name="clt", root=str(tmp_path), last_layer=30))
    assert source.load(3).content_hash == sae.content_hash
    with pytest.raises(UserError, match="it writes to several layers"):
        sae.encode(inputs())
    with pytest.raises(UserError, match="asked for layer 4, but the file is of layer 3"):
        load_sae(tmp_path / "W_enc_3.safetensors", 4)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_temporal_saes_by_definition(tmp_path: Path, tied: bool) -> None:
    folder, t = write_temporal(tmp_path / "layer_12" / "temporal", tied, sae_diff_type="relu"), random_tensors()
    sae = load_sae(folder)
    assert (sae.site, sae.activation.kind.value) == (Site.resid_post, "relu")
    with pytest.raises(UserError, match="what earlier tokens do not predict"):
        sae.encode(inputs())
    encoder = t["W_dec"].T if tied else t["W_enc"]
    pre = (0.25 * inputs() - t["b_dec"]) @ encoder / (4 * D)
    f = sae.replace(match_only=None).encode(inputs())
    torch.testing.assert_close(f, pre.relu(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sae.decode(f), (pre.relu() @ t["W_dec"] + t["b_dec"]) / 0.25, rtol=1e-5, atol=1e-4)
    with pytest.raises(UserError, match="asked for layer 3, but the file is of layer 12"):
        load_sae(folder, 3)


def test_gated_and_batch_topk_as_in_memory(tmp_path: Path) -> None:
    """The same tensors and convention as `from_state_dict`."""
    t = random_tensors()
    plain = {name: t[name] for name in ("W_enc", "W_dec", "b_dec")}
    gated = plain | {"b_gate": t["b_enc"], "b_mag": t["threshold"], "r_mag": 0.1 * t["b_enc"]}
    for kind, tensors, k in (("gated", gated, None), ("batch_topk", plain | {"b_enc": t["b_enc"]}, K)):
        path = write_tensors(tmp_path / f"{kind}.safetensors", tensors)
        how = Convention(activation=kind, subtracts_b_dec=True, normalization="none", k=k)
        memory = SparseAutoencoder.from_state_dict(tensors, how)
        sae = load_sae(path, dialect=state_dicts(activation=kind, k=k, subtracts_b_dec=True))
        assert (sae.content_hash, sae.match_only) == (memory.content_hash, memory.match_only)
