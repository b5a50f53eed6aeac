"""The project's own files: round trips, metadata, several sparsities, and errors that name what is wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sae_match
from sae_match import UserError, load_sae
from sae_match.saes import Activation, ActivationKind, SaeSource, save_native
from sae_match.saes.activation import GATED, RELU
from sae_match.saes.formats.native import FORMAT, Native
from sae_match.saes.formats.reading import read_metadata
from sae_match.saes.site import Site
from tests.builders import random_sae

EMBEDDED = Path(sae_match.__file__).parent / "assets" / "smollm2_135m"


def test_the_embedded_saes_are_those_of_their_report() -> None:
    report = json.loads((EMBEDDED / "training_report.json").read_text(encoding="utf-8"))
    assert {entry["layer"] for entry in report if entry["seed"] == 0} == set(range(30))
    for entry in report:
        assert hashlib.sha256((EMBEDDED / entry["file"]).read_bytes()).hexdigest() == entry["sha256"], entry["file"]
        sae = load_sae(f"embedded/smollm2_135m/{entry['file']}")
        assert (sae.width, sae.d_model) == (1152, 576)
        assert float(sae.threshold.min()) == pytest.approx(entry["theta_min"], rel=0.01)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(1152), rtol=0, atol=1e-2)


def test_native_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sae.safetensors"
    save_native(random_sae(), path, {"license": "MIT"})
    assert load_sae(path).content_hash == random_sae().content_hash
    assert read_metadata(path)["license"] == "MIT"
    assert [p.name for p in path.parent.iterdir()] == ["sae.safetensors"]


def test_native_bfloat16_reads_back_as_float32(tmp_path: Path) -> None:
    save_native(random_sae(), tmp_path / "sae.safetensors", dtype=torch.bfloat16)
    back = load_sae(tmp_path / "sae.safetensors")
    assert back.W_enc.dtype == torch.float32
    torch.testing.assert_close(back.W_dec, random_sae().W_dec, rtol=2**-8, atol=0)


def test_native_int8_keeps_the_norm_of_every_row(tmp_path: Path) -> None:
    sae = random_sae()
    sae = sae.replace(W_dec=torch.cat([sae.W_dec[:-1], torch.zeros(1, sae.d_model)]))  # a feature that writes nothing
    save_native(sae, tmp_path / "sae.safetensors", dtype=torch.int8)
    back = load_sae(tmp_path / "sae.safetensors")
    assert (tmp_path / "sae.safetensors").stat().st_size < 2 * sae.W_enc.numel() + 4 * 5 * sae.width + 1_000
    for name in ("b_enc", "b_dec", "threshold"):
        assert torch.equal(getattr(back, name), getattr(sae, name))
    for got, given in ((back.W_enc.T, sae.W_enc.T), (back.W_dec, sae.W_dec)):
        torch.testing.assert_close(got.norm(dim=1), given.norm(dim=1))
        # half a step of the largest entry, and as much again for the scale that keeps the norm
        assert bool(((got - given).abs() <= given.abs().amax(1, keepdim=True) / 127).all())


def test_a_file_of_another_layer_is_refused(tmp_path: Path) -> None:
    save_native(random_sae(), tmp_path / "layer_13.safetensors", metadata={"layer": "14"})
    saes = Native(name="mine", root=str(tmp_path), last_layer=20)
    with pytest.raises(UserError, match="asked for layer 13, but the file is of layer 14"):
        saes.read(saes.locate(13), 13)


def test_saes_of_no_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither sae.root nor sae.repo_id is set"):
        Native(name="mine", last_layer=20).locate(13)


def test_native_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        load_sae(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json")
    with pytest.raises(UserError, match="not a readable safetensors"):
        load_sae(tmp_path / "broken.safetensors")
    save_file({"W_enc": torch.zeros(2, 2), "extra": torch.zeros(1)}, tmp_path / "keys.safetensors")
    with pytest.raises(UserError, match=r"missing \['W_dec', 'b_dec', 'b_enc', 'threshold'\], unknown \['extra'\]"):
        load_sae(tmp_path / "keys.safetensors")
    integers = torch.zeros(8, 24, dtype=torch.int8)  # without their scales
    save_file({**random_sae().parameters(), "W_enc": integers}, tmp_path / "int8.safetensors")
    with pytest.raises(UserError, match=r"W_enc must be a floating-point tensor, got dtype torch\.int8"):
        load_sae(tmp_path / "int8.safetensors")
    (tmp_path / "sae.dat").touch()
    with pytest.raises(UserError, match="unknown SAE file type"):
        load_sae(tmp_path / "sae.dat")


TOPK = Activation(ActivationKind.topk, k=2, stored_threshold=0.7)


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
    ids=["relu", "topk", "gated", "normalized", "site", "scale", "match_only"],
)
def test_native_files_carry_the_facts(tmp_path: Path, facts: dict[str, Any]) -> None:
    sae = random_sae().replace(**facts)
    save_native(sae, tmp_path / "sae.safetensors", {"license": "MIT"})
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


def test_the_site_of_a_file_that_does_not_say_it_is_given(tmp_path: Path) -> None:
    save_native(random_sae().replace(site=Site.unknown), tmp_path / "sae.safetensors")
    assert load_sae(tmp_path / "sae.safetensors").site is Site.unknown
    assert load_sae(tmp_path / "sae.safetensors", site="resid_post").site is Site.resid_post


PATTERN = "layer_{layer:02d}_l0_{l0}.safetensors"


def config(root: Path | None, l0: str | None, pattern: str | None = PATTERN) -> Native:
    return Native(
        name="s", root=None if root is None else str(root), l0=l0, l0_filename=pattern,
        default_l0=32, ceiling_filename="layer_{layer:02d}_seed_1.safetensors", last_layer=20,
    )  # fmt: skip


@pytest.fixture
def saes(tmp_path: Path) -> Path:
    for name in ("layer_13", "layer_14", "layer_13_l0_8", "layer_13_l0_64", "layer_14_l0_64", "layer_13_seed_1"):
        save_native(random_sae(seed=len(name) + int(name[6:8])), tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("l0", "names"),
    [
        (None, ["layer_13.safetensors", "layer_14.safetensors"]),
        ("32", ["layer_13.safetensors", "layer_14.safetensors"]),
        ("64", ["layer_13_l0_64.safetensors", "layer_14_l0_64.safetensors"]),
        ("32/64", ["layer_13.safetensors", "layer_14_l0_64.safetensors"]),
    ],
)
def test_the_file_of_each_layer(saes: Path, l0: str | None, names: list[str]) -> None:
    source = SaeSource(config(saes, l0), (13, 14))
    assert [source.files(layer) for layer in (13, 14)] == [(name,) for name in names]
    assert [source.locate([layer])[layer].name for layer in (13, 14)] == names


def test_what_is_missing_is_said_with_what_there_is(saes: Path) -> None:
    assert config(saes, None).l0s(13) == [8, 32, 64]
    with pytest.raises(UserError, match=r"no SAE of layer 14 at L0 8 .*there are: 32, 64\. .*training\.target_l0=8"):
        SaeSource(config(saes, "8"), (13, 14)).load(14)
    with pytest.raises(UserError, match=r"there are: none\."):
        SaeSource(config(saes, "8"), (15,)).load(15)


def test_sparsities_may_lie_in_folders(saes: Path, tmp_path: Path) -> None:
    save_native(random_sae(seed=5), tmp_path / "l0_16" / "layer_13.safetensors")
    cfg = config(saes, "16", "l0_{l0}/layer_{layer:02d}.safetensors")
    assert cfg.l0s(13) == [16, 32]
    assert SaeSource(cfg, (13,)).load(13).width == 24


def test_a_second_seed_is_no_ceiling_of_another_sparsity(saes: Path) -> None:
    assert SaeSource(config(saes, "32"), (13, 14), second=True).has(13)
    assert not SaeSource(config(saes, "64"), (13, 14), second=True).has(13)
    assert SaeSource(config(saes, "32/64"), (13, 14), second=True).has(13)


def test_a_pattern_needs_a_layer() -> None:
    with pytest.raises(UserError, match=r"layer_\{layer:02d\}.safetensors: of which layer\? load_sae\("):
        load_sae("embedded/smollm2_135m/layer_{layer:02d}.safetensors")
