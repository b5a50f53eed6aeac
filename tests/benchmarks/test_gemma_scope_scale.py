"""The scale generator, small: the hub's layout, honest planted permutations, and a score that can be low."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_match import Permutation, load_sae, match
from tests.benchmarks.gemma_scope_scale import REPLACED, Recipe, compare, generate

RECIPE = Recipe(layers=3, width=60, d=48, noise=0.1, replaced=0.2, seed=3)


def file(root: Path, layer: int) -> Path:
    (found,) = (root / f"layer_{layer}").rglob("params.npz")
    return found


def test_files_are_laid_out_as_on_the_hub(tmp_path: Path) -> None:
    generate(RECIPE, tmp_path)
    names = [file(tmp_path, layer).relative_to(tmp_path).as_posix() for layer in range(3)]
    assert names == [f"layer_{i}/width_16k/average_l0_{n}/params.npz" for i, n in enumerate((105, 102, 141))]
    with zipfile.ZipFile(file(tmp_path, 0)) as archive:
        assert [member.filename for member in archive.infolist()] == [
            "W_enc.npy", "W_dec.npy", "b_enc.npy", "b_dec.npy", "threshold.npy",
        ]  # fmt: skip
        assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    sae = load_sae(file(tmp_path, 1))
    assert (sae.d_model, sae.width) == (48, 60)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(60))


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate(RECIPE, tmp_path / name)
    assert load_sae(file(tmp_path / "a", 2)).content_hash == load_sae(file(tmp_path / "b", 2)).content_hash


def test_planted_partners_are_the_same_features(tmp_path: Path) -> None:
    generate(RECIPE, tmp_path)
    a, b = load_sae(file(tmp_path, 0)), load_sae(file(tmp_path, 1))
    planted = torch.from_numpy(np.load(tmp_path / "planted" / "layer_00_to_01.npy"))
    persisting = planted != REPLACED
    assert int((~persisting).sum()) == 12, "a fifth is replaced"
    assert len(planted[persisting].unique()) == 48
    cosine = (a.W_dec[persisting] * b.W_dec[planted[persisting]]).sum(1)
    assert cosine.min() > 0.9
    others = torch.ones(60, dtype=torch.bool).scatter(0, planted[persisting], False)
    assert (a.W_dec[~persisting] @ b.W_dec[others].T).max() < 0.9, "what is replaced is new"


def record(root: Path, generated: Path, **changes: Permutation) -> Path:
    """Permutations as a job saves them."""
    for layer in range(2):
        a, b = load_sae(file(generated, layer)), load_sae(file(generated, layer + 1))
        found = changes.get(f"p{layer}") or match(a, b).permutation
        permutation = Permutation(found.indices, found.width_b, {"layer_a": layer})
        permutation.save(root / "permutations" / f"layer_{layer:02d}_to_{layer + 1:02d}.safetensors")
    return root


def test_the_score_counts_persisting_features_only(tmp_path: Path) -> None:
    generate(RECIPE, tmp_path / "saes")
    right = compare(record(tmp_path / "right", tmp_path / "saes"), tmp_path / "saes")
    assert [(s.layer, s.persisting, s.found) for s in right] == [(0, 48, 48), (1, 48, 48)]
    shifted = Permutation.random(60, seed=1)
    wrong = compare(record(tmp_path / "wrong", tmp_path / "saes", p1=shifted), tmp_path / "saes")
    assert wrong[0].accuracy == 1.0 and wrong[1].accuracy < 0.2


def test_more_noise_is_harder(tmp_path: Path) -> None:
    generate(Recipe(layers=3, width=60, d=16, noise=2.5, seed=3), tmp_path / "saes")
    scores = compare(record(tmp_path / "record", tmp_path / "saes"), tmp_path / "saes")
    assert max(score.accuracy for score in scores) < 0.95


@pytest.mark.slow
def test_command_line(tmp_path: Path, repository: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.benchmarks.gemma_scope_scale", "--out", str(tmp_path / "saes")]
        return subprocess.run([*command, *arguments], cwd=repository, capture_output=True, text=True, check=True)

    call("--layers", "3", "--width", "60", "--d", "48", "--noise", "0.1", "--replaced", "0")
    found = call("--compare", str(record(tmp_path / "record", tmp_path / "saes"))).stdout
    assert "layer  0: 60 of 60 persisting features (1.0000)" in found
    with pytest.raises(subprocess.CalledProcessError):
        call("--compare", str(tmp_path / "absent"))
    ran = call("--run", str(tmp_path / "ran"), "--", "matching=decoder").stdout
    assert ran.count("60 of 60 persisting features") == 2
    assert "peak memory" in ran and "exit code 0" in ran
