"""A checkpoint dialect from a user's own package and configuration directory: found, checked, read, planned, keyed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from sae_match import UserError, load_sae
from sae_match.experiment import run
from sae_match.experiment.rerun import input_hashes
from sae_match.pairs import job_pairs
from sae_match.rules import check_config
from sae_match.study import Study
from tests.builders import identity_sae, permuted
from tests.tiny_setting import D_MODEL, LAYERS, planned

FORMAT = '''
from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from sae_match.options import option
from sae_match.saes import SaeFormat, SaeHeader, Site, SparseAutoencoder


@option
class Tied(SaeFormat):
    """Decoder rows only; the encoder is their transpose."""

    prefix: str
    """Beginning of the files' names."""

    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        return (f"{self.prefix}{layer}.safetensors",)

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        width, d_model = load_file(path)["rows"].shape
        return SaeHeader(d_model, width, Site.resid_post)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        header, rows = self.header(path, layer), load_file(path)["rows"]
        return SparseAutoencoder(
            W_enc=rows.T, b_enc=torch.zeros(header.width), W_dec=rows, b_dec=torch.zeros(header.d_model),
            threshold=torch.full((header.width,), 1e-6), site=header.site, source=str(path),
        )
'''
OPTION = """_target_: own_formats.Tied
name: tied
root: null
prefix: block_
first_layer: 0
last_layer: 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A package outside the project and a configuration directory that names its class; the overrides that use them."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "own_formats.py").write_text(FORMAT)
    (tmp_path / "conf" / "sae").mkdir(parents=True)
    (tmp_path / "conf" / "sae" / "mine.yaml").write_text(OPTION)
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.delitem(sys.modules, "own_formats", raising=False)
    return (f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "trusted_packages=[own_formats]", "sae=mine")


@pytest.fixture
def saes(tmp_path: Path) -> Path:
    """Tied SAEs that reconstruct everything, in another order in each layer."""
    (tmp_path / "saes").mkdir()
    for layer in range(LAYERS):
        order = torch.randperm(2 * D_MODEL, generator=torch.Generator().manual_seed(layer))
        rows = permuted(identity_sae(D_MODEL), order).W_dec.contiguous()
        save_file({"rows": rows}, tmp_path / "saes" / f"block_{layer}.safetensors")
    return tmp_path / "saes"


def test_a_job_reads_a_users_own_format(
    own: tuple[str, ...], saes: Path, configured: Callable[..., Study], tmp_path: Path
) -> None:
    cfg = configured(saes, *own)
    assert type(cfg.sae).__name__ == "Tied"
    assert cfg.config["sae"] | {"root": None} == {
        "_target_": "own_formats.Tied", "name": "tied", "root": None, "repo_id": None, "revision": None, "site": None,
        "d_model": None, "n_layers": None, "neuronpedia": None, "first_layer": 0, "last_layer": 3, "prefix": "block_",
    }  # fmt: skip
    assert planned(cfg).problems == []
    before = input_hashes(cfg, job_pairs(cfg))["saes"]
    run(cfg)
    pairs = pd.read_csv(tmp_path / "out" / "pairs.csv")
    matched = pairs[(pairs["metric"] == "explained_variance") & (pairs["variant"] == "encode_permute_decode")]
    assert len(matched) == LAYERS - 1
    (saes / "block_2.safetensors").write_bytes((saes / "block_1.safetensors").read_bytes())
    after = input_hashes(cfg, job_pairs(cfg))["saes"]
    assert [old[1] for old, new in zip(before, after, strict=True) if old != new] == [2]


def test_its_options_are_its_own(own: tuple[str, ...], saes: Path, configured: Callable[..., Study]) -> None:
    with pytest.raises(UserError, match=r"unknown configuration key: sae\.width"):
        configured(saes, *own, "+sae.width=16k")
    with pytest.raises(UserError, match=r"layers\.last=3: the SAEs tied cover layers 0\.\.2"):
        check_config(configured(saes, *own, "sae.last_layer=2"))


def test_the_library_takes_the_class_or_an_object(own: tuple[str, ...], saes: Path) -> None:
    kind = importlib.import_module("own_formats").Tied
    path = saes / "block_1.safetensors"
    sae = load_sae(path, 1, dialect=kind(name="tied", prefix="block_", last_layer=3))
    assert sae.width == 2 * D_MODEL
    with pytest.raises(UserError, match=r"dialect=Tied: prefix: .* pass an object"):
        load_sae(path, 1, dialect=kind)
