"""Every SAE of SAELens' registry by name: the table, what runs, and the same files read there and here."""

from __future__ import annotations

from collections import Counter
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
from sae_match.saes.formats.release import CONVERTERS, Release
from sae_match.saes.releases import release_named, release_names
from tests.saes import release_table
from tests.saes.layouts import (
    D,
    F,
    random_tensors,
    write_cross_layer,
    write_dictionary,
    write_gemma_scope_2,
    write_json,
    write_llama_scope_r1,
    write_saelens,
    write_state_dict,
    write_temporal,
)
from tests.saes.layouts import write_gemma_scope as write_npz


def named(release: str, id: str, root: Path | None = None, **fields: Any) -> Release:
    place = None if root is None else str(root)
    return Release(name="test", release=release, id=id, root=place, last_layer=1000, **fields)


# -- the table -------------------------------------------------------------------------------------------


def test_the_table_is_that_of_the_installed_saelens() -> None:
    """Where this fails after an update of sae-lens, `python -m tests.saes.release_table` makes it again."""
    registry = release_table.registry()
    assert release_names() == sorted(registry)
    for name, entry in registry.items():
        ours = {sae.id: sae for sae in release_named(name).saes.values()}
        assert {id: sae.path for id, sae in ours.items()} == {s["id"]: str(s["path"]) for s in entry["saes"]}
        assert release_named(name).repo_id == entry["repo_id"]
        converter = release_named(name).converter
        assert converter == (entry["conversion_func"] or "sae_lens")
        for sae in entry["saes"]:
            if "norm_scaling_factor" in sae and converter != "llama_scope":
                assert ours[sae["id"]].scale == sae["norm_scaling_factor"]
            assert ("embedding" in str(sae["path"])) == (ours[sae["id"]].site is Site.embedding)


RUNS = {
    ("span", "activations"): 42,
    ("span", "weights only"): 59,
    ("list", "activations"): 30,
    ("list", "weights only"): 28,
    ("one layer", "activations"): 8,
    ("one layer", "weights only"): 3,
}
"""How many releases a command runs over neighboring layers, over `layers.list`, or which are of one layer only (several
of one layer are compared in the library), and whether they encode residual streams."""


def how(name: str) -> tuple[str, str]:
    """How the best of a release's ids can be used: over neighboring layers, over a list of layers, or as single SAEs;
    and whether such an SAE encodes residual streams."""
    published = release_named(name)
    by_id: dict[str, list[int]] = {}
    for sae in published.saes.values():
        by_id.setdefault(pattern(sae.id, sae.block, sae.l0), []).append(sae.layer or 0)
    spans = [len({*layers} & {layer + 1 for layer in layers}) > 0 for layers in by_id.values()]
    several = any(len({*layers}) > 1 for layers in by_id.values())
    reads = {sae.site for sae in published.saes.values()} & {Site.resid_post, Site.resid_pre}
    plain = published.converter not in ("temporal",) and not published.settings.keys() - {"k"}
    layers = "span" if any(spans) else "list" if several else "one layer"
    return layers, "activations" if reads and plain else "weights only"


def pattern(id: str, block: int | None, l0: int | None) -> str:
    return release_table.pattern(id, block, None if l0 is None else str(l0))


def test_every_release_is_addressable_and_what_it_can_be_used_for() -> None:
    counted = Counter(how(name) for name in release_names())
    assert sum(counted.values()) == 170
    assert dict(counted) == RUNS


def test_every_sae_resolves_to_files() -> None:
    for name in release_names():
        published = release_named(name)
        assert published.converter in CONVERTERS
        for id in published.patterns():
            if "{layer}" not in id:
                continue
            saes = named(name, id, l0=70 if "{l0}" in id else None)
            assert saes.repo_id == published.repo_id
            for layer in saes.covered():
                files = saes.files(layer, (layer,))
                assert all("{" not in file for file in files) and len(set(files)) == len(files)
        for sae in published.saes.values():
            if sae.block is None:
                assert named(name, sae.id).files(None) == (f"{sae.path}/params.npz",)


@pytest.mark.parametrize(
    ("release", "id", "fields", "message"),
    [
        ("gemma-scope-2b-res", "x", {}, "no such release.*nearest: gemma-scope-2b-pt-res"),
        ("qwen-scope-3-8b-base-w64k-l50", "layer_3", {}, "no such SAE; nearest: layer3"),
        ("qwen-scope-3-8b-base-w64k-l50", "layer_{layer}", {}, r"its ids: layer\{layer\}"),
        ("qwen-scope-3-8b-base-w64k-l50", "layer{layer}", {"l0": 50}, r"sae\.id has no \{l0\}"),
    ],
)
def test_unknown_names(release: str, id: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        named(release, id, **fields)


def test_layers_that_a_release_has() -> None:
    bench = named("sae_bench_gemma-2-2b_topk_width-2pow12_date-1109", "blocks.{layer}.hook_resid_post__trainer_0")
    assert (list(bench.covered()), bench.first_layer, bench.last_layer) == ([5, 12, 19], 5, 19)
    bench.check_layers((5, 19))
    with pytest.raises(UserError, match=r"no SAE of layers 6, 7; there are 'layers.list=\[5, 12, 19\]'"):
        bench.check_layers((5, 6, 7))
    with pytest.raises(UserError, match=r"there are layers\.first=0 layers\.last=25"):
        named("gemma-scope-2b-pt-mlp-canonical", "layer_{layer}/width_16k/canonical").check_layers((25, 26))
    one = named("gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_59")
    assert list(one.covered()) == [3]
    with pytest.raises(UserError, match="is of layer 3, and layer 4 was asked for"):
        one.files(4)


def test_one_line_for_layers_whose_l0s_differ() -> None:
    span = (3, 4, 5)
    # Layer 3 has 14 28 59 142 315, layer 4 17 31 60 124 125 281, layer 5 18 34 68 143 309.
    for l0, expected in ((70, (59, 60, 68)), (16, (14, 17, 18))):
        saes = named("gemma-scope-2b-pt-res", "layer_{layer}/width_16k/average_l0_{l0}", l0=l0)
        assert [saes.files(at, span)[0].split("_")[-1] for at in span] == [f"{n}/params.npz" for n in expected]
    with pytest.raises(UserError, match=r"layer 3 has the L0s 14, 28, 59, 142, 315; say near which with sae\.l0=N"):
        named("gemma-scope-2b-pt-res", "layer_{layer}/width_16k/average_l0_{l0}").files(3)
    canonical = named("gemma-scope-2b-pt-res-canonical", "layer_{layer}/width_16k/canonical")
    assert [canonical.files(at)[0].split("/")[2] for at in span] == [f"average_l0_{n}" for n in (59, 124, 68)]
    transcoders = named("gemma-scope-2b-pt-transcoders", "layer_{layer}/width_16k/average_l0_{l0}")
    assert transcoders.files(0) == ("layer_0/width_16k/average_l0_76/params.npz",)


# -- files -----------------------------------------------------------------------------------------------


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
    heads = (2, D // 2) if ours.site is Site.attn_out else (D,)
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
    write_state_dict(path, PLAIN, turned=False)
    tensors["W_enc"] = tensors["W_enc"].T
    from tests.saes.layouts import write_tensors

    write_tensors(path, tensors)
    facts = {"d_model": {"value": D}, "d_feature": {"value": F}, "batch_size": {"value": 8}}
    write_json(path.with_name("wandb-config.yaml"), facts)
    write_json(path.with_name("config.yaml"), {"model_name": "Qwen/Qwen3-4B"})


def write_clt(path: Path) -> None:
    write_cross_layer(path.parent, int(path.name))
    hooks = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    write_json(path.parent / "config.yaml", {"model_name": "google/gemma-2-2b", **hooks})


def write_affine(path: Path) -> None:
    """SAELens takes the first of small files for the layer's; `write_gemma_scope_2` names its folder itself."""
    write_gemma_scope_2(path.parents[1], 3, path.parent.name)


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
    "Gemma Scope 2": ("gemma-scope-2-1b-pt-res-all", "layer_3_width_16k_l0_small", write_affine, {}),
    "Gemma Scope 2 MLP": (
        "gemma-scope-2-1b-pt-mlp-all", "layer_3_width_16k_l0_small", write_affine, {"site": Site.mlp_out},
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
    assert_same(ours, in_sae_lens(release, id, expected.get("width", F)), unit)
    assert ours.site is expected.get("site", Site.resid_post)
    # By a span's line the same SAE.
    saes = named(release, pattern(id, sae.block, None), here)
    assert sae.layer is not None
    assert SaeSource(saes).load(sae.layer).content_hash == ours.content_hash


def test_every_layout_is_compared() -> None:
    """Llama Scope, whose arithmetic differs from SAELens', is compared in test_against_sae_lens.py."""
    compared = {release_named(release).converter for release, *_ in CASES.values()}
    assert compared == CONVERTERS.keys() - {"llama_scope"}
