"""SAEs of several sparsities in the native layout: which file `sae.l0` names, and what is said where it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_match import UserError
from sae_match.saes import SaeSource, save_native
from sae_match.saes.formats.base import l0_of_layer
from sae_match.saes.formats.gemma_scope import GemmaScope
from sae_match.saes.formats.native import Native
from tests.builders import random_sae

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
    assert SaeSource(config(saes, "32"), (13, 14)).load_ceiling(13) is not None
    assert SaeSource(config(saes, "64"), (13, 14)).load_ceiling(13) is None
    assert SaeSource(config(saes, "32/64"), (13, 14)).load_ceiling(13) is not None


def test_one_l0_for_all_layers_or_one_for_each() -> None:
    assert [l0_of_layer("71/70", layer, (20, 21)) for layer in (20, 21)] == ["71", "70"]
    assert l0_of_layer("similar", 3, (3, 4)) == "similar"
    with pytest.raises(UserError, match=r"names 2 L0s, but .* are 3 layers"):
        l0_of_layer("71/70", 20, (20, 21, 22))


def test_gemma_scope_reads_a_folder_per_layer() -> None:
    cfg = GemmaScope(
        name="g", repo_id="google/gemma-scope-2b-pt-res", width="16k", l0="71/70",
        last_layer=25,
    )  # fmt: skip
    names = [SaeSource(cfg, (20, 21)).files(layer)[0] for layer in (20, 21)]
    assert names == [f"layer_{layer}/width_16k/average_l0_{l0}/params.npz" for layer, l0 in ((20, 71), (21, 70))]
