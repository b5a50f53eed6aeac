"""Live objects of SAELens, sparsify and dictionary_learning: equal to their own encode and decode, or refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes import batchtopk_sae, gated_sae, jumprelu_sae, matryoshka_batchtopk_sae, standard_sae, topk_sae
from torch import Tensor, nn

from sae_match import SparseAutoencoder, UserError, load_sae, match
from sae_match.saes.site import Site
from tests.builders import random_sae
from tests.saes.layouts import (
    D,
    F,
    K,
    dictionary_state,
    random_tensors,
    write_dictionary,
    write_saelens,
    write_sparsify,
)


def inputs(tokens: int = 400) -> Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(9))


def linear(name: str, state: dict[str, Tensor], bias: bool) -> nn.Linear:
    rows, columns = state[f"{name}.weight"].shape
    return nn.Linear(columns, rows, bias=bias)


class Dictionary(nn.Module):
    """What all classes of dictionary_learning have."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.activation_dim, self.dict_size = D, F
        self.build(state)
        self.load_state_dict(state)

    def build(self, state: dict[str, Tensor]) -> None:
        for name in ("encoder", "decoder"):
            if f"{name}.weight" in state:
                setattr(self, name, linear(name, state, f"{name}.bias" in state))
        for name, values in state.items():
            if values.ndim == 0 or name == "group_sizes":
                self.register_buffer(name, values.clone())
            elif "." not in name:
                self.register_parameter(name, nn.Parameter(values.clone()))


class AutoEncoder(Dictionary):
    def encode(self, x: Tensor) -> Tensor:
        return nn.ReLU()(self.encoder(x - self.bias))

    def decode(self, f: Tensor) -> Tensor:
        return self.decoder(f) + self.bias


class AutoEncoderNew(Dictionary):
    def encode(self, x: Tensor) -> Tensor:
        return nn.ReLU()(self.encoder(x))

    def decode(self, f: Tensor) -> Tensor:
        return self.decoder(f)


class GatedAutoEncoder(Dictionary):
    def encode(self, x: Tensor, normalize_decoder: bool = False) -> Tensor:
        x_enc = self.encoder(x - self.decoder_bias)
        f = ((x_enc + self.gate_bias) > 0).to(x) * nn.ReLU()(self.r_mag.exp() * x_enc + self.mag_bias)
        return f * self.decoder.weight.norm(dim=0, keepdim=True) if normalize_decoder else f

    def decode(self, f: Tensor, normalize_decoder: bool = False) -> Tensor:
        return self.decoder(f) + self.decoder_bias


class JumpReluAutoEncoder(Dictionary):
    apply_b_dec_to_input = False

    def encode(self, x: Tensor) -> Tensor:
        x = x - self.b_dec if self.apply_b_dec_to_input else x
        pre = x @ self.W_enc + self.b_enc
        return nn.ReLU()(pre * (pre > self.threshold))

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.W_dec + self.b_dec


class AutoEncoderTopK(Dictionary):
    def encode(self, x: Tensor) -> Tensor:
        f = nn.functional.relu(self.encoder(x - self.b_dec))
        top = f.topk(int(self.k), sorted=False, dim=-1)
        return torch.zeros_like(f).scatter_(-1, top.indices, top.values)

    def decode(self, f: Tensor) -> Tensor:
        return self.decoder(f) + self.b_dec


class BatchTopKSAE(AutoEncoderTopK):
    def encode(self, x: Tensor) -> Tensor:
        f = nn.functional.relu(self.encoder(x - self.b_dec))
        return f * (f > self.threshold)


class MatryoshkaBatchTopKSAE(Dictionary):
    active = F

    def encode(self, x: Tensor) -> Tensor:
        f = nn.functional.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        f = f * (f > self.threshold)
        f[:, self.active :] = 0
        return f

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.W_dec + self.b_dec


DICTIONARIES = [
    AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder, AutoEncoderTopK, BatchTopKSAE,
    MatryoshkaBatchTopKSAE,
]  # fmt: skip


def dictionary(kind: type[Dictionary]) -> Dictionary:
    return kind(dictionary_state(kind.__name__))


@dataclass
class SparseCoderConfig:
    activation: str = "topk"
    expansion_factor: int = F // D
    num_latents: int = 0
    k: int = K
    skip_connection: bool = False
    transcode: bool = False


class SparseCoder(nn.Module):
    """sparsify's class: encode gives the top activations and their indices."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        t, self.cfg = random_tensors(), SparseCoderConfig(**changes)
        self.encoder = nn.Linear(D, F)
        self.W_dec, self.b_dec = nn.Parameter(t["W_dec"]), nn.Parameter(t["b_dec"])
        self.W_skip = nn.Parameter(torch.eye(D)) if self.cfg.skip_connection else None
        self.encoder.weight.data, self.encoder.bias.data = t["W_enc"].T.contiguous(), t["b_enc"]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pre = torch.relu(self.encoder(x if self.cfg.transcode else x - self.b_dec))
        return (*torch.topk(pre, self.cfg.k, dim=-1, sorted=False), pre)

    def decode(self, top: Tensor, indices: Tensor) -> Tensor:
        return nn.functional.embedding_bag(indices, self.W_dec, per_sample_weights=top, mode="sum") + self.b_dec


@torch.no_grad()
def assert_same(ours: SparseAutoencoder, f: Tensor, x_hat: Tensor) -> None:
    torch.testing.assert_close(ours.encode(inputs()), f, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(ours(inputs()), x_hat, rtol=1e-5, atol=2e-5)
    assert 0.02 < float((f > 0).float().mean()) < 0.9  # the comparison is neither of zeros nor of a linear map


HOOK = {"metadata": {"hook_name": "blocks.3.hook_resid_post", "sae_lens_version": "6.54.12"}}
SAE_LENS: list[dict[str, Any]] = [
    {"architecture": kind, "apply_b_dec_to_input": subtracts, **HOOK}
    for kind in ("standard", "jumprelu", "gated")
    for subtracts in (True, False)
] + [{"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": rescales, **HOOK} for rescales in (True, False)]


@torch.no_grad()
@pytest.mark.parametrize("cfg", SAE_LENS)
def test_sae_lens(tmp_path: Path, cfg: dict[str, Any]) -> None:
    folder = write_saelens(tmp_path, cfg)
    theirs = SAE.load_from_disk(folder)
    ours = SparseAutoencoder.from_sae_lens(theirs)
    assert_same(ours, theirs.encode(inputs()), theirs(inputs()))
    assert (ours.site, ours.content_hash) == (Site.resid_post, load_sae(folder).content_hash)
    theirs.W_dec += 1  # what goes on with the object does not reach the copy
    assert ours.content_hash == load_sae(folder).content_hash


TRAINING = [
    (standard_sae.StandardTrainingSAE, standard_sae.StandardTrainingSAEConfig, {}),
    (gated_sae.GatedTrainingSAE, gated_sae.GatedTrainingSAEConfig, {}),
    (jumprelu_sae.JumpReLUTrainingSAE, jumprelu_sae.JumpReLUTrainingSAEConfig, {"jumprelu_init_threshold": 0.4}),
    (topk_sae.TopKTrainingSAE, topk_sae.TopKTrainingSAEConfig, {"k": K}),
    (topk_sae.TopKTrainingSAE, topk_sae.TopKTrainingSAEConfig, {"k": K, "use_sparse_activations": True}),
    (batchtopk_sae.BatchTopKTrainingSAE, batchtopk_sae.BatchTopKTrainingSAEConfig, {"k": K}),
    (
        matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE,
        matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": K, "matryoshka_widths": [F // 2, F]},
    ),
]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "config", "more"), TRAINING)
def test_sae_lens_in_training_is_what_it_would_save(tmp_path: Path, kind: Any, config: Any, more: Any) -> None:
    theirs = kind(config(d_in=D, d_sae=F, **more))
    generator = torch.Generator().manual_seed(3)
    for parameter in theirs.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).abs())
    if "batch" in config.architecture():
        theirs.topk_threshold += 0.5
    before = {name: values.clone() for name, values in theirs.state_dict().items()}
    ours = load_sae(theirs)
    assert all(torch.equal(values, before[name]) for name, values in theirs.state_dict().items())
    theirs.save_inference_model(tmp_path)
    saved = SAE.load_from_disk(tmp_path)
    assert_same(ours, saved.encode(inputs()), saved(inputs()))
    assert ours.stated_l0 == (K if "batch" in config.architecture() else None)


@torch.no_grad()
@pytest.mark.parametrize("kind", DICTIONARIES)
def test_dictionary_learning(tmp_path: Path, kind: type[Dictionary]) -> None:
    theirs, folder = dictionary(kind), write_dictionary(tmp_path, kind.__name__)
    ours = load_sae(theirs, site="resid_post")
    f = theirs.encode(inputs())
    assert_same(ours, f, theirs.decode(f))
    assert ours.site is Site.resid_post
    from_file = load_sae(folder)
    assert ours.content_hash == from_file.content_hash
    assert ours.activation == from_file.activation


@torch.no_grad()
def test_sparsify(tmp_path: Path) -> None:
    theirs, ours = SparseCoder(), load_sae(SparseCoder())
    top, indices, pre = theirs.encode(inputs())
    assert_same(ours, torch.zeros_like(pre).scatter_(-1, indices, top), theirs.decode(top, indices))
    assert ours.content_hash == load_sae(write_sparsify(tmp_path)).content_hash
    transcoder = load_sae(SparseCoder(transcode=True, skip_connection=True))
    assert transcoder.site is Site.transcoder
    assert transcoder.content_hash == load_sae(write_sparsify(tmp_path / "t", transcode=True)).content_hash
    with pytest.raises(UserError, match="skip connection"):
        transcoder.encode(inputs())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    """The comparison bears rounding; the result is float32."""
    theirs = dictionary(AutoEncoderTopK).to(dtype)
    assert torch.equal(load_sae(theirs).W_dec, theirs.decoder.weight.T.float())


def test_the_same_as_from_files_in_a_matching(tmp_path: Path) -> None:
    theirs = SAE.load_from_disk(write_saelens(tmp_path, SAE_LENS[2]))
    other = random_sae(F, D)
    found, again = match(theirs, other), match(load_sae(tmp_path), other)
    assert torch.equal(found.permutation.indices, again.permutation.indices)
    assert found.permutation.provenance["sae_a"] == again.permutation.provenance["sae_a"]


class Scaled(AutoEncoder):
    """A subclass that computes something else than its class."""

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(2 * x)


class NotCentered(AutoEncoder):
    def encode(self, x: Tensor) -> Tensor:
        return nn.ReLU()(self.encoder(x))


class WithoutBias(AutoEncoder):
    def decode(self, f: Tensor) -> Tensor:
        return self.decoder(f)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "name"), [(Scaled, "encode"), (NotCentered, "encode"), (WithoutBias, "decode")])
def test_an_object_that_computes_something_else_is_refused(kind: Any, name: str, dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=rf"{kind.__name__} in memory: its {name} is not that of its class"):
        load_sae(kind(dictionary_state("AutoEncoder")).to(dtype))


def test_attributes_count_where_the_class_reads_them() -> None:
    theirs = dictionary(JumpReluAutoEncoder)
    plain, theirs.apply_b_dec_to_input = load_sae(theirs), True  # type: ignore[attr-defined]
    torch.testing.assert_close(load_sae(theirs).b_enc, plain.b_enc - plain.b_dec @ plain.W_enc)
    groups = dictionary(MatryoshkaBatchTopKSAE)
    groups.active = F // 2  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="its encode is not that of its class"):
        load_sae(groups)


def sae_lens_of(folder: Path, hook: str, **more: Any) -> SAE[Any]:
    metadata = {"hook_name": hook, "sae_lens_version": "6.54.12"}
    return SAE.load_from_disk(write_saelens(folder, {"architecture": "standard", "metadata": metadata, **more}))


def test_layer_and_site_are_compared(tmp_path: Path) -> None:
    pre = sae_lens_of(tmp_path, "blocks.8.hook_resid_pre")
    assert load_sae(pre).site is Site.resid_pre
    assert load_sae(pre, 7).site is Site.resid_post  # the input of block 8 is the output of block 7
    with pytest.raises(UserError, match="asked for layer 6, but it is of layer 8"):
        load_sae(pre, 6)
    with pytest.raises(UserError, match="site=mlp_out, but it reads resid_pre"):
        load_sae(pre, site="mlp_out")
    assert load_sae(sae_lens_of(tmp_path, "mine"), site="resid_post").site is Site.resid_post
    own = random_sae()
    assert load_sae(own) is own
    assert load_sae(own, site="mlp_out").site is Site.mlp_out


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_a_normalization_of_each_input_only_matches(tmp_path: Path, normalization: str) -> None:
    ours = load_sae(sae_lens_of(tmp_path, "blocks.3.hook_resid_post", normalize_activations=normalization))
    with pytest.raises(UserError, match=f"inputs are normalized \\({normalization}\\)"):
        ours.encode(inputs())


@pytest.mark.parametrize("make", [lambda: nn.Linear(D, F), lambda: {"W_enc": torch.zeros(D, F)}, lambda: None])
def test_other_objects_are_refused(make: Any) -> None:
    for call in (load_sae, SparseAutoencoder.from_sae_lens, lambda other: match(random_sae(), other)):
        with pytest.raises(UserError, match="is no SAE"):
            call(make())


def test_unset_batch_thresholds_and_other_activations() -> None:
    state = dictionary_state("BatchTopKSAE") | {"threshold": torch.tensor(-1.0)}
    with pytest.raises(UserError, match="BatchTopK SAE without a threshold"):
        load_sae(BatchTopKSAE(state)).encode(inputs())
    with pytest.raises(UserError, match="only topk is supported"):
        load_sae(SparseCoder(activation="groupmax"))


def test_no_library_is_imported() -> None:
    code = "import sys, sae_match.saes.live\nprint([n for n in ('sae_lens', 'sparsify') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
