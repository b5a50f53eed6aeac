"""Everything that a user may add, from her own package and configuration directory, through the command itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from sae_match.record.labels import read_labels
from sae_match.report.cli import main as report
from tests.builders import random_sae
from tests.command import run_command
from tests.tiny_setting import D_MODEL, build_model

PACKAGE = '''
"""A user's own package."""

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file

from sae_match.evaluation.splices import Splice
from sae_match.matching import Permutation
from sae_match.matching.similarity import Similarity
from sae_match.matching.solution import Solution, Solver
from sae_match.metrics import ActivationMetric, Description
from sae_match.options import option
from sae_match.saes import SaeFormat, SaeHeader, Site, SparseAutoencoder
from sae_match.text.source import Document, TextSource


class JointFiring(ActivationMetric):
    """Co-activations per token."""

    about = Description(name="joint_firing", label="joint firing", unit="pairs/token", better="higher", headline=True)

    def estimate(self, counts, bootstrap):
        return bootstrap.ratio(counts.together.sum(axis=1), counts.tokens)


@option
class Halved(Splice):
    """A share of layer t's residual stream."""

    name: str = "halved"
    label: str = "half of layer t"
    share: float = 0.5

    def bind(self, pair):
        return {self.name: self.bound(pair, lambda x: self.share * x.x_a)}


@option
class DecoderCosine(Similarity):
    """Cosine of decoder rows."""

    name: str = "decoder_cosine"

    def matrix(self, pair):
        rows = [
            torch.nn.functional.normalize(sae.W_dec[kept], dim=1)
            for sae, kept in zip((pair.a, pair.b), pair.kept(), strict=True)
        ]
        return rows[0] @ rows[1].T


@option
class Reversed(Solver):
    """Feature i to the last but i."""

    name: str = "reversed"

    def required_bytes(self, n_a, n_b, d):
        return 0

    def solve(self, problem):
        permutation = Permutation(torch.arange(problem.shape[0]).flip(0), problem.shape[1])
        return Solution(permutation, problem.objective(permutation))

    solve_similarity = solve


@option
class Tied(SaeFormat):
    """Decoder rows only; the encoder is their transpose."""

    prefix: str

    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        return (f"{self.prefix}{layer}.safetensors",)

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        width, d_model = load_file(path)["rows"].shape
        return SaeHeader(d_model, width, Site.resid_post)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        header, rows = self.header(path, layer), load_file(path)["rows"]
        return SparseAutoencoder(
            W_enc=rows.T, b_enc=torch.zeros(header.width), W_dec=rows, b_dec=torch.zeros(header.d_model),
            threshold=torch.full((header.width,), 0.1), site=header.site, source=str(path),
        )


@option
class Counting(TextSource):
    """Documents of consecutive words."""

    words: int = Field(ge=1)

    def identity(self) -> dict[str, str]:
        return {"words": str(self.words)}

    def read(self, facts: dict[str, str]) -> Iterator[Document]:
        for i in range(12):
            yield Document(str(i), f"counting {i}", " ".join(f"w{(7 * i + 3 * j) % 40}" for j in range(self.words)))
'''
OPTIONS = {
    "matching/mine": "_target_: my_package.DecoderCosine\ndead_features: keep\n",
    "solver/mine": "_target_: my_package.Reversed\nname: mine\n",
    "evaluation/controls/mine": (
        "mine:\n  _target_: sae_match.evaluation.controls.Matcher\n  name: mine\n  label: my control\n"
        "  similarity:\n    _target_: my_package.DecoderCosine\n  solver:\n    _target_: my_package.Reversed\n"
    ),
    "sae/mine": "_target_: my_package.Tied\nname: tied\nroot: ???\nprefix: block_\nfirst_layer: 0\nlast_layer: 2\n",
    "dataset/mine": (
        "_target_: my_package.Counting\nname: counting\nwords: 30\npart: all\ndocuments: 6\nwindow_tokens: 10\n"
        "windows_per_document: 2\nseed: 0\n"
    ),
    "experiment/mine": (
        "# @package _global_\ndefaults:\n  - override /sae: mine\n  - override /dataset: mine\n"
        "  - override /model: local\n"
        "  - override /evaluation/controls: [random, mine]\nevaluation:\n  splices:\n    halved:\n"
        "      _target_: my_package.Halved\n"
        "metrics:\n  joint:\n    _target_: my_package.JointFiring\n"
    ),
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's package, configuration directory, SAEs and model."""
    root = tmp_path_factory.mktemp("user")
    (root / "my_package.py").write_text(PACKAGE)
    for name, text in OPTIONS.items():
        path = root / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "saes").mkdir()
    for layer in range(3):
        save_file({"rows": random_sae(24, D_MODEL, seed=layer).W_dec}, root / "saes" / f"block_{layer}.safetensors")
    build_model(root / "model")
    return root


@pytest.fixture(autouse=True)
def importable(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(setting)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)


def job(setting: Path, out: Path, *overrides: str) -> tuple[pd.DataFrame, dict[str, float]]:
    done = run_command(
        "--config-dir", str(setting / "conf"), "experiment=mine", "trusted_packages=[my_package]",
        f"sae.root={setting / 'saes'}", f"model.path={setting / 'model'}", "device=cpu",
        "evaluation.bootstrap_samples=50", f"hydra.run.dir={out}", *overrides,
        env={"SAE_MATCH_CACHE": str(setting / "cache")}, cwd=out.parent,
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
    return pd.read_csv(out / "pairs.csv"), json.loads((out / "metrics.json").read_text())


def test_one_job_with_everything_of_the_users(setting: Path, tmp_path: Path) -> None:
    pairs, metrics = job(setting, tmp_path / "job")
    assert metrics["joint_firing"] > 0 and "joint_firing_low" in metrics and "joint_firing/mine" in metrics
    assert "explained_variance/halved" in metrics and "delta_loss/halved" in metrics
    assert "delta_loss/encode_permute_decode_mine" in metrics
    assert set(pairs["layer"]) == {0, 1, 2}
    labels = read_labels(tmp_path / "job" / "labels.json")
    assert labels.metric("joint_firing").unit == "pairs/token"
    written = (tmp_path / "job" / "labels.json").read_text()
    assert "my control" in written and "half of layer t" in written
    sys.modules.pop("my_package", None)
    sys.path.remove(str(setting))  # the report needs no package of the user's
    report([str(tmp_path / "job"), "--output", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "joint firing" in text and "pairs/token" in text
    controls = text.partition("## Controls")[2]
    assert "| mine " in controls


def test_the_matching_itself_by_the_users_similarity_and_solver(setting: Path, tmp_path: Path) -> None:
    _, own = job(setting, tmp_path / "own", "matching=mine", "evaluation=weights_only")
    _, paper = job(setting, tmp_path / "paper", "matching=decoder", "folding=none", "evaluation=weights_only")
    # Rows of unit norm: the largest sum of cosines is the least sum of squared distances.
    assert own["decoder_cosine"] == pytest.approx(paper["decoder_cosine"], abs=1e-6) and own["gap"] == 0.0
    _, reversed_ = job(setting, tmp_path / "reversed", "matching=mine", "solver=mine", "evaluation=weights_only")
    assert reversed_["decoder_cosine"] < own["decoder_cosine"]
    assert reversed_["decoder_cosine"] == pytest.approx(reversed_["decoder_cosine/mine"])


def test_a_changed_argument_or_sae_is_no_stale_loss(setting: Path, tmp_path: Path) -> None:
    one = [job(setting, tmp_path / str(share), f"+evaluation.splices.halved.share={share}")[1] for share in (0.5, 0.25)]
    assert one[0]["delta_loss/halved"] != one[1]["delta_loss/halved"]
    other = tmp_path / "saes"
    other.mkdir()
    for layer in range(3):
        rows = torch.nn.functional.normalize(random_sae(24, D_MODEL, seed=layer + 9).W_dec, dim=1)
        save_file({"rows": rows}, other / f"block_{layer}.safetensors")
    changed = job(setting, tmp_path / "changed", f"sae.root={other}")[1]
    for name in ("delta_loss/encode_permute_decode", "explained_variance/encode_permute_decode_mine"):
        assert changed[name] != one[0][name]


def test_a_package_that_is_not_trusted_is_refused(setting: Path, tmp_path: Path) -> None:
    done = run_command(
        "--config-dir", str(setting / "conf"), "matching=mine", f"hydra.run.dir={tmp_path / 'job'}", cwd=tmp_path
    )
    assert done.code == 2 and "trusted_packages=[my_package]" in done.err and not (tmp_path / "job/pairs.csv").exists()
