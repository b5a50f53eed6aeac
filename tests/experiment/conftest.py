"""A tiny local language model, local text and SAEs that fit it: the whole pipeline without the embedded default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from sae_match.app.build import build
from sae_match.experiment import Result, job, run
from sae_match.saes import SparseAutoencoder, save_native
from sae_match.study import Study
from tests.builders import identity_sae, permuted, random_sae
from tests.compositions import composed
from tests.tiny_setting import D_MODEL, LAYERS, build_model, build_text


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with 4 blocks and d_model 8, and a word-level tokenizer without BOS."""
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def text_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten documents of 30 random words."""
    return build_text(tmp_path_factory.mktemp("text"))


def _save(root: Path, saes: dict[str, SparseAutoencoder]) -> Path:
    for name, sae in saes.items():
        save_native(sae, root / f"{name}.safetensors")
    return root


@pytest.fixture
def perfect_saes(tmp_path: Path) -> Path:
    """SAEs of all layers that reconstruct everything, with their features in another order in each layer."""
    orders = [torch.randperm(2 * D_MODEL, generator=torch.Generator().manual_seed(i)) for i in range(LAYERS)]
    saes = {f"layer_{i:02d}": permuted(identity_sae(D_MODEL), order) for i, order in enumerate(orders)}
    return _save(tmp_path / "perfect", saes)


def _save_random(root: Path) -> Path:
    saes = {f"layer_{i:02d}": random_sae(width=24, d=D_MODEL, seed=i) for i in range(LAYERS)}
    return _save(root, saes | {"layer_01_seed_1": random_sae(width=24, d=D_MODEL, seed=99)})


@pytest.fixture
def random_saes(tmp_path: Path) -> Path:
    """Independent random SAEs, and a second seed of layer 1."""
    return _save_random(tmp_path / "random")


def _study(places: dict[str, Path], root: Path, saes: Path, overrides: tuple[str, ...], output: str) -> Study:
    native = ("sae=native", "sae.ceiling_filename='layer_{layer:02d}_seed_1.safetensors'")
    chosen = {override.partition("=")[0] for override in overrides}
    local = [f"{group}=local" for group in places if group not in chosen]
    local += [f"{group}.path={path}" for group, path in places.items() if group not in chosen]
    fixed = [
        *local, *([] if "sae" in chosen else native), f"sae.root={saes}",
        "dataset.documents=10", "dataset.window_tokens=12", "dataset.windows_per_document=2",
        "layers.first=0", "layers.last=3", "tracking=none", "evaluation.bootstrap_samples=50", "device=cpu",
        f"paths.output_dir={root / output}", f"paths.cache_dir={root / 'cache'}", "progress=false",
    ]  # fmt: skip
    return build(composed(*fixed, *overrides), Study)


@pytest.fixture
def configured(model_directory: Path, text_directory: Path, tmp_path: Path) -> Callable[..., Study]:
    """A maker of full-evaluation configurations over the tiny model."""
    places = {"model": model_directory, "dataset": text_directory}

    def make(saes: Path, *overrides: str, output: str = "out") -> Study:
        return _study(places, tmp_path, saes, overrides, output)

    return make


class StandardJob(NamedTuple):
    """A whole job on random SAEs with nothing changed, for tests that only read."""

    study: Study
    saes: Path
    result: Result


@pytest.fixture(scope="session")
def standard_job(model_directory: Path, text_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> StandardJob:
    """Run once for all tests that read its results."""
    root = tmp_path_factory.mktemp("standard")
    saes = _save_random(root / "random")
    study = _study({"model": model_directory, "dataset": text_directory}, root, saes, (), "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "draw_figures", lambda *_, **__: [])
        return StandardJob(study, saes, run(study))
