"""Files of every layout in SAELens' registry: the same SAE there and here, by its release, and by definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as theirs
from torch import Tensor

from sae_match import SparseAutoencoder, UserError, load_sae
from sae_match.saes import SaeSource, Site
from sae_match.saes.formats.reading import safetensors_shapes
from sae_match.saes.formats.release import CONVERTERS
from sae_match.saes.releases import release_named
from sae_match.saes.site import site_of_hook
from tests.saes.layouts import (
    D,
    F,
    random_tensors,
    write_cross_layer,
    write_dictionary,
    write_gemma_scope_2,
    write_json,
    write_llama_scope,
    write_llama_scope_r1,
    write_saelens,
    write_state_dict,
    write_temporal,
    write_tensors,
)
from tests.saes.layouts import write_gemma_scope as write_npz
from tests.saes.test_releases import named, pattern


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SAELens' loaders ask the hub for files; they get those under tmp_path."""

    def local(repo_id: str, filename: str, subfolder: str = "", **_: object) -> str:
        path = tmp_path / subfolder / filename
        if not path.exists():
            raise EntryNotFoundError(filename)
        return str(path)

    def shapes(_: str, filename: str) -> dict[str, list[int]]:
        return {name: list(shape) for name, shape in safetensors_shapes(tmp_path / filename).items()}

    monkeypatch.setattr(theirs, "hf_hub_download", local)
    monkeypatch.setattr(theirs, "get_safetensors_tensor_shapes", shapes)
    return tmp_path


def in_sae_lens(release: str, id: str, width: int = F) -> SAE[Any]:
    """What `SAE.from_pretrained` makes of the files, in their own sizes."""
    layout = theirs.get_conversion_loader_name(release)
    loader = theirs.NAMED_PRETRAINED_SAE_LOADERS[layout]
    sizes = {"d_in": D, "d_sae": width} | ({"d_out": D} if "transcoder" in layout else {})

    def small(cfg_overrides: dict[str, Any], **how: Any) -> Any:
        return loader(cfg_overrides={**cfg_overrides, **sizes}, **how)

    return SAE.from_pretrained(release, id, converter=small).eval()


def inputs(tokens: int = 400) -> Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def assert_same(ours: SparseAutoencoder, other: SAE[Any], unit: float = 1.0) -> None:
    """Equal features (ours times `unit`) and reconstructions, also of an SAE that only matches."""
    x, able = inputs(), ours.replace(match_only=None)
    heads = (2, D // 2) if other.cfg.reshape_activations == "hook_z" else (D,)
    f, theirs = able.encode(x), other.encode(x.view(1, -1, *heads))
    torch.testing.assert_close(f * unit, theirs[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(able.decode(f), other.decode(theirs).view(-1, D), rtol=1e-5, atol=2e-5)
    assert 0.02 < float((f > 0).float().mean()) < 0.9  # the comparison is neither of zeros nor of a linear map


PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
GOODFIRE = {key: name.replace("coder.", "coder_linear.") for key, name in LINEAR.items()}
RESID: dict[str, Any] = {"hook_name": "blocks.3.hook_resid_post", "architecture": "standard"}


def write_hook_z(path: Path) -> None:
    write_state_dict(path, PLAIN, turned=False)
    name = f"{path.name.removesuffix('.pt')}_cfg.json"
    write_json(path.with_name(name), {"act_size": D, "dict_size": F, "act_name": "blocks.3.attn.hook_z"})


def write_mwhanna(path: Path) -> None:
    tensors = {name: t for name, t in random_tensors().items() if name != "threshold"}
    write_tensors(path, tensors | {"W_enc": tensors["W_enc"].T})
    facts = {"d_model": {"value": D}, "d_feature": {"value": F}, "batch_size": {"value": 8}}
    write_json(path.with_name("wandb-config.yaml"), facts)
    write_json(path.with_name("config.yaml"), {"model_name": "Qwen/Qwen3-4B"})


def write_clt(path: Path) -> None:
    write_cross_layer(path.parent, int(path.name))
    hooks = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    write_json(path.parent / "config.yaml", {"model_name": "google/gemma-2-2b", **hooks})


def write_gemma_3(path: Path) -> None:
    write_gemma_scope_2(path.parents[1], 3, path.parent.name)


def write_affine_transcoder(path: Path) -> None:
    """SAELens tells by the folder's name that there is a skip connection where config.json is missing."""
    written = write_gemma_scope_2(path.parents[2], 3, "affine", config=False)
    path.parent.mkdir(parents=True)
    written.parent.rename(path)


CASES: dict[str, tuple[str, str, Callable[[Path], object], dict[str, Any]]] = {
    "Gemma Scope": (
        "gemma-scope-2b-pt-res-canonical", "layer_3/width_16k/canonical",
        lambda path: write_npz(path.parents[2], 3, 59), {},
    ),
    "Gemma Scope transcoder": (
        "gemma-scope-2b-pt-transcoders", "layer_3/width_16k/average_l0_54",
        lambda path: write_npz(path.parents[2], 3, 54), {"site": Site.transcoder},
    ),
    "Gemma Scope heads": (
        "gemma-scope-2b-pt-att", "layer_3/width_16k/average_l0_117",
        lambda path: write_npz(path.parents[2], 3, 117), {"site": Site.attn_out},
    ),
    "Gemma Scope 2": ("gemma-scope-2-1b-pt-res-all", "layer_3_width_16k_l0_small", write_gemma_3, {}),
    "Gemma Scope 2 MLP": (
        "gemma-scope-2-1b-pt-mlp-all", "layer_3_width_16k_l0_small", write_gemma_3, {"site": Site.mlp_out},
    ),
    "Gemma Scope 2 transcoder": (
        "gemma-scope-2-1b-pt-transcoders-all", "layer_3_width_16k_l0_small", write_gemma_3, {"site": Site.transcoder},
    ),
    "Gemma Scope 2 transcoder with a skip connection": (
        "gemma-scope-2-1b-pt-transcoders-all", "layer_3_width_16k_l0_small_affine", write_affine_transcoder,
        {"site": Site.transcoder},
    ),
    "Gemma Scope 2 heads": (
        "gemma-scope-2-1b-pt-att-all", "layer_3_width_16k_l0_small", write_gemma_3, {"site": Site.attn_out},
    ),
    "Qwen Scope": (
        "qwen-scope-3-8b-base-w64k-l50", "layer3", lambda path: write_state_dict(path, PLAIN, width=128),
        {"width": 128},
    ),
    "Goodfire": ("goodfire-llama-3.1-8b-instruct", "layer_19", lambda path: write_state_dict(path, GOODFIRE), {}),
    "DeepSeek R1": (
        "deepseek-r1-distill-llama-8b-qresearch", "blocks.19.hook_resid_post",
        lambda path: write_state_dict(path, LINEAR), {},
    ),
    "hook_z": ("gpt2-small-hook-z-kk", "blocks.3.hook_z", write_hook_z, {"site": Site.attn_out}),
    "per-layer transcoder": ("mwhanna-qwen3-4b-transcoders", "layer_3", write_mwhanna, {"site": Site.transcoder}),
    "cross-layer transcoder": (
        "mntss-gemma-2-2b-2.5m-clt-as-per-layer", "layer_3", write_clt, {"site": Site.transcoder},
    ),
    "temporal": ("temporal-sae-gemma-2-2b", "blocks.12.hook_resid_post", write_temporal, {}),
    "Llama Scope R1-Distill": (
        "llama_scope_r1_distill", "l3r_800m_slimpajama",
        lambda path: write_llama_scope_r1(path, sparsity_include_decoder_norm=False), {"unit": True},
    ),
    "dictionary_learning": (
        "sae_bench_pythia70m_sweep_topk_ctx128_0730", "blocks.3.hook_resid_post__trainer_0",
        lambda path: write_dictionary(path, "AutoEncoderTopK"), {},
    ),
    "a checkpoint of dictionary_learning": (
        "sae_bench_gemma-2-2b_vanilla_width-2pow12_date-1109", "blocks.5.hook_resid_post__trainer_0_step_0",
        lambda path: write_dictionary(path, "AutoEncoder", 5, submodule_name=None), {},
    ),
    "SAELens": (
        "gemma-2-2b-res-matryoshka-dc", "blocks.3.hook_resid_post",
        lambda path: write_saelens(path, RESID | {"architecture": "jumprelu"}), {},
    ),
    "SAELens, inputs scaled": (
        "gemma-2b-res-jb", "blocks.6.hook_resid_post",
        lambda path: write_saelens(path, RESID | {"hook_name": "blocks.6.hook_resid_post"}), {},
    ),
    "SAELens, inputs scaled and centered": (
        "gpt2-small-mlp-tm", "blocks.3.hook_mlp_out",
        lambda path: write_saelens(
            path, RESID | {"hook_name": "blocks.3.hook_mlp_out", "normalize_activations": "expected_average_only_in"}
        ), {"site": Site.mlp_out},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_same_files_in_saelens_and_here(here: Path, case: str) -> None:
    release, id, write, expected = CASES[case]
    sae = release_named(release).find(id)
    write(here / sae.path)
    ours = load_sae(here, release=release, id=id)
    unit = sae.scale if expected.get("unit") and sae.scale is not None else 1.0
    other = in_sae_lens(release, id, expected.get("width", F))
    assert_same(ours, other, unit)
    if ours.site is not Site.transcoder:  # which SAELens names by what it reads
        assert site_of_hook(other.cfg.metadata.hook_name)[0] is ours.site
    assert ours.site is expected.get("site", Site.resid_post)
    # By a span's line the same SAE.
    saes = named(release, pattern(id, sae.block, None), here)
    assert sae.layer is not None
    assert SaeSource(saes).load(sae.layer).content_hash == ours.content_hash


@pytest.mark.parametrize("where", ["file", "registry"])
@torch.no_grad()
def test_r1_distill_with_the_decoder_norms_of_its_own_library(here: Path, where: str) -> None:
    """As for Llama Scope, SAELens' threshold lacks the decoder norm; with it divided out, both agree to rounding."""
    release, id = "llama_scope_r1_distill", "l3r_800m_slimpajama"
    sae = release_named(release).find(id)
    assert sae.scale is not None
    norm = D**0.5 / sae.scale
    folder = write_llama_scope_r1(here / sae.path, norm=norm if where == "file" else None)
    ours, other = load_sae(here, release=release, id=id), in_sae_lens(release, id)
    norms = random_tensors(3)["W_dec"].norm(dim=1)
    assert not torch.equal(ours.encode(inputs()) > 0, other.encode(inputs()) > 0)
    other.threshold.data /= norms
    f = ours.encode(inputs())
    torch.testing.assert_close(f * sae.scale, other.encode(inputs()) * norms, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(ours.decode(f), other(inputs()), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(ours.W_dec.norm(dim=1), torch.ones(F))
    if where == "file":
        assert load_sae(folder, 3).content_hash == ours.content_hash
    else:
        with pytest.raises(UserError, match="its inputs are normalized"):
            load_sae(folder, 3).encode(inputs())


def test_inputs_that_r1s_library_has_standardized_already(tmp_path: Path) -> None:
    sae = load_sae(write_llama_scope_r1(tmp_path, norm_activation="inference", sparsity_include_decoder_norm=False), 3)
    t = random_tensors(3)
    pre = inputs() @ t["W_enc"] + t["b_enc"]
    torch.testing.assert_close(sae.encode(inputs()), pre * (pre > t["threshold"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("release", "id", "cfg", "message"),
    [
        ("mistral-7b-res-wg", "blocks.8.hook_resid_pre", {}, r"its inputs are normalized \(constant_norm_rescale\)"),
        ("gpt2-small-res-jb", "blocks.8.hook_resid_pre", {}, "center_writing_weights"),
        ("gpt2-small-res_sce-ajt", "blocks.6.hook_resid_pre", {"normalize_activations": "layer_norm"}, "layer_norm"),
    ],
)
def test_what_only_the_registry_says_is_applied_or_refused(
    here: Path, release: str, id: str, cfg: dict[str, Any], message: str
) -> None:
    block = release_named(release).find(id).block
    hook = {"hook_name": f"blocks.{block}.hook_resid_pre"}
    write_saelens(here / release_named(release).find(id).path, RESID | hook | cfg)
    mirror = named(release, id.replace(str(block), "{next}"), here, repo_id="somebody/mirror")
    assert block is not None
    for sae in (load_sae(here, release=release, id=id), SaeSource(mirror).load(block - 1)):
        with pytest.raises(UserError, match=message):
            sae.encode(inputs())


def test_the_input_of_the_next_block_by_its_release(here: Path) -> None:
    release, id = "gpt2-small-res_sll-ajt", "blocks.{next}.hook_resid_pre"
    write_saelens(here / "6-res_sll-ajt", RESID | {"hook_name": "blocks.6.hook_resid_pre"})
    assert load_sae(here, 5, release=release, id=id).site is Site.resid_post
    assert load_sae(here, release=release, id="blocks.6.hook_resid_pre").site is Site.resid_pre
    assert (named(release, id).site, list(named(release, id).covered())) == (Site.resid_post, [1, 5, 9])


def test_a_file_of_another_hook_point_is_refused(here: Path) -> None:
    write_saelens(here / "blocks.3.hook_resid_post", RESID | {"hook_name": "blocks.3.hook_mlp_out"})
    with pytest.raises(UserError, match=r"sae\.site=resid_post, but the file reads mlp_out"):
        load_sae(here, 3, release="gemma-2-9b-res-matryoshka-dc", id="blocks.{layer}.hook_resid_post")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"release": "gemma-2b-res-jb"}, "a release goes with an id"),
        ({"release": "gemma-2b-res-jb", "id": "x", "dialect": "saelens"}, "a release goes with an id, alone"),
        ({"release": "gemma-2b-res-jb", "id": "blocks.{layer}.hook_resid_post"}, "of which layer"),
        ({"release": "gemma-2b-res-jb", "id": "blocks.6.hook_resid_post", "layer": 5}, "is of block 6"),
    ],
)
def test_load_sae_asks_for_what_is_missing(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_sae(**given)


def test_embeddings_only_match(here: Path) -> None:
    sae = release_named("gemma-scope-2b-pt-res").find("embedding/width_4k/average_l0_6")
    path = write_npz(here, 0, 6)
    (here / sae.path).mkdir(parents=True)
    path.rename(here / sae.path / "params.npz")
    with pytest.raises(UserError, match="reads token embeddings"):
        load_sae(here, release="gemma-scope-2b-pt-res", id=sae.id).encode(inputs())


def test_llama_scope_by_its_release(here: Path) -> None:
    folder = write_llama_scope(here, 3)
    saes = named("llama_scope_lxr_8x", "l{layer}r_8x", here)
    assert SaeSource(saes).load(3).content_hash == load_sae(folder, 3).content_hash


def test_every_layout_is_compared() -> None:
    """Llama Scope, whose arithmetic differs from SAELens', is compared in test_against_sae_lens.py."""
    compared = {release_named(release).converter for release, *_ in CASES.values()}
    assert compared == CONVERTERS.keys() - {"llama_scope"}
