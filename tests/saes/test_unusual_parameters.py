"""What trainers leave behind: thresholds at or below 0 and decoder rows of zeros."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_match import SparseAutoencoder, UserError, fold, load_sae, match
from sae_match.saes import measure_scale, with_scale
from tests.builders import permuted, random_sae
from tests.saes.layouts import D, F, random_tensors, write_gemma_scope, write_json, write_llama_scope, write_saelens

CFG = {"architecture": "jumprelu", "apply_b_dec_to_input": True, "hook_name": "blocks.1.hook_resid_post"}


def low_thresholds() -> Tensor:
    """One at 0, two below."""
    threshold = random_tensors()["threshold"]
    threshold[3], threshold[7], threshold[9] = 0.0, -2.6e-4, -0.8
    return threshold


def inputs() -> Tensor:
    return 2 * torch.randn(400, D, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_thresholds_below_zero_act_as_in_sae_lens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_saelens(tmp_path, CFG, threshold=low_thresholds())
    ours, theirs, x = load_sae(folder), SAE.load_from_disk(folder).eval().encode(inputs()), inputs()
    torch.testing.assert_close(ours.encode(x), theirs, rtol=1e-5, atol=1e-5)
    assert bool((theirs[:, [3, 7, 9]] > 0).any(dim=0).all()) and float(ours.encode(x).min()) == 0
    assert "2 of 24 thresholds are negative (feature 7, 9)" in caplog.text


@torch.no_grad()
def test_thresholds_below_zero_act_as_in_dictionary_learning(tmp_path: Path) -> None:
    t = random_tensors() | {"threshold": low_thresholds()}
    trainer = {"dict_class": "JumpReluAutoEncoder", "activation_dim": D, "dict_size": F, "layer": 1}
    write_json(tmp_path / "config.json", {"trainer": trainer | {"submodule_name": "resid_post_layer_1"}})
    torch.save(t, tmp_path / "ae.pt")
    pre = inputs() @ t["W_enc"] + t["b_enc"]
    expected = torch.relu(pre * (pre > t["threshold"]))  # JumpReluAutoEncoder.encode
    torch.testing.assert_close(load_sae(tmp_path).encode(inputs()), expected)


@torch.no_grad()
def test_thresholds_below_zero_act_as_in_gemma_scope(tmp_path: Path) -> None:
    t = random_tensors() | {"threshold": low_thresholds()}
    pre = inputs() @ t["W_enc"] + t["b_enc"]
    expected = (pre > t["threshold"]) * torch.relu(pre)  # the tutorial's encode
    path = write_gemma_scope(tmp_path, threshold=t["threshold"].numpy())
    torch.testing.assert_close(load_sae(path).encode(inputs()), expected)


def test_a_file_of_log_thresholds_is_refused(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path, CFG, threshold=random_tensors()["threshold"].clamp(max=0.9).log())
    with pytest.raises(UserError, match=r"24 of 24 thresholds are negative.*log thresholds"):
        load_sae(folder)


def test_only_folding_by_such_a_threshold_is_refused() -> None:
    t = random_tensors() | {"threshold": low_thresholds()}
    a = SparseAutoencoder(**t)
    order = torch.randperm(F, generator=torch.Generator().manual_seed(2))
    b = permuted(a, order)
    with pytest.raises(UserError, match=r"<= 0 at feature 3, 7, 9\. .*decoder_norm.*folding=none.*exclude_a"):
        match(a, b)
    whole = torch.argsort(order)
    assert torch.equal(match(a, b, folding="none").permutation.indices, whole)
    assert torch.equal(match(*(with_scale(sae, "decoder_norm") for sae in (a, b))).permutation.indices, whole)
    part = match(a, b, exclude_a=a.threshold <= 0, exclude_b=b.threshold <= 0)
    assert part.permutation.indices[[3, 7, 9]].tolist() == [-1, -1, -1]
    assert torch.equal(part.permutation.indices[part.permutation.matched], whole[part.permutation.matched])
    with pytest.raises(UserError, match="feature 7, 9"):
        match(a, b, exclude_a=torch.arange(F) == 3, exclude_b=b.threshold <= 0)


def test_a_decoder_row_of_zeros_is_a_point_like_any_other(tmp_path: Path) -> None:
    W_dec = random_tensors()["W_dec"]
    W_dec[5] = 0
    a = load_sae(write_saelens(tmp_path, CFG | {"architecture": "standard"}, W_dec=W_dec))
    order = torch.randperm(F, generator=torch.Generator().manual_seed(2))
    found = match(a, permuted(a, order), folding="none")
    assert torch.equal(found.permutation.indices, torch.argsort(order)) and found.objective == pytest.approx(0)
    for scaled in (
        lambda: with_scale(a, "decoder_norm"),
        lambda: measure_scale(a, "estimated", inputs().view(4, 100, D), k=3),
    ):
        with pytest.raises(UserError, match=r"decoder row is all zero at feature 5.*folding=none"):
            scaled()


def test_a_decoder_column_of_zeros_in_llama_scope(tmp_path: Path) -> None:
    folder = write_llama_scope(tmp_path)
    plain = load_sae(folder)
    path = folder / "checkpoints" / "final.safetensors"
    weights = load_file(path)
    weights["decoder.weight"][:, 5] = 0
    save_file(weights, path)
    sae = load_sae(folder)
    # Its pre-activation is multiplied by the decoder norm before it is compared with the threshold: it never fires.
    assert float(sae.encode(100 * inputs())[:, 5].abs().max()) == 0 and float(sae.W_dec[5].abs().max()) == 0
    rest = torch.arange(F) != 5
    assert torch.equal(sae.encode(inputs())[:, rest], plain.encode(inputs())[:, rest])


def test_folding_keeps_what_a_feature_of_threshold_zero_computes() -> None:
    sae = SparseAutoencoder(**(random_tensors() | {"threshold": low_thresholds()}))
    x = inputs()
    torch.testing.assert_close(fold(with_scale(sae, "decoder_norm"))(x), sae(x))
    assert random_sae().foldable and not sae.foldable
