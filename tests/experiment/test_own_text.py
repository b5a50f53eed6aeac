"""A text of the user's own package, named by an option file of her own configuration directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from sae_match import UserError
from sae_match.config.compose import config_directory, register_schemas, to_dataclass
from sae_match.config.schema import Config
from sae_match.experiment import run

PACKAGE = """
from collections.abc import Iterator

from pydantic import Field
from sae_match.options import option
from sae_match.text.source import Document, TextSource


@option
class CountingText(TextSource):
    \"\"\"Documents of consecutive words.\"\"\"

    words: int = Field(ge=1)

    def identity(self) -> dict[str, str]:
        return {"words": str(self.words)}

    def read(self, facts: dict[str, str]) -> Iterator[Document]:
        for i in range(12):
            text = " ".join(f"w{(7 * i + 3 * j) % 40}" for j in range(self.words))
            yield Document(str(i), f"counting {i}", text)
"""
OPTION = """
_target_: counting_text_package.CountingText
name: counting
words: 30
part: all
documents: 6
window_tokens: 10
windows_per_document: 2
seed: 0
"""


def composed(directory: Path, *overrides: str) -> Config:
    register_schemas()
    (directory / "dataset").mkdir(parents=True, exist_ok=True)
    (directory / "dataset" / "counting.yaml").write_text(OPTION, encoding="utf-8")
    own = f"hydra.searchpath=[file://{directory}]"
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        return to_dataclass(compose("config", [own, "dataset=counting", *overrides]), Config)


def test_a_job_reads_it(
    model_directory: Path, perfect_saes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "counting_text_package.py").write_text(PACKAGE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "package")
    paths = [f"paths.output_dir={tmp_path / 'out'}", f"paths.cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(UserError, match=r"dataset\.words=0: must be greater than or equal to 1"):
        composed(tmp_path / "conf", *paths, "dataset.words=0")
    with pytest.raises(UserError, match=r"unknown configuration key: dataset\.letters"):
        composed(tmp_path / "conf", *paths, "+dataset.letters=1")
    cfg = composed(
        tmp_path / "conf", *paths, "sae=native", f"sae.root={perfect_saes}", "model=local",
        f"model.path={model_directory}", "layers.first=0", "layers.last=1", "tracking=none", "device=cpu",
        "evaluation.bootstrap_samples=50", "evaluation.controls=[linear_map]", "progress=false",
    )  # fmt: skip
    result = run(cfg)
    assert result.metrics["explained_variance/encode_permute_decode"] > 0.9
    assert "explained_variance/linear_map" in result.metrics
    assert cfg.config["dataset"]["words"] == 30
