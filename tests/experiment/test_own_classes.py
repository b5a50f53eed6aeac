"""A text and a judge of the user's own package, named by option files of her own configuration directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from sae_match import UserError
from sae_match.app.build import build, register_schemas
from sae_match.experiment import run
from sae_match.files import config_directory
from sae_match.study import Study

PACKAGE = """
from collections.abc import Iterator, Sequence

from pydantic import Field
from sae_match.judging import Judgement, Judging, Level, Outcome, Question
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


@option
class LengthJudge(Judging):
    \"\"\"Same where the descriptions are about equally long.\"\"\"

    tolerance: int = Field(ge=0)

    def start(self, questions: Sequence[Question], answers: object) -> "LengthJudge":
        return self

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        return [self.verdict(len(q.a.text) - len(q.b.text)) for q in questions]

    def verdict(self, difference: int) -> Judgement:
        return Judgement(Outcome.answered, Level.same if abs(difference) <= self.tolerance else Level.different)
"""
TEXT = """
_target_: own_package.CountingText
name: counting
words: 30
part: all
documents: 6
window_tokens: 10
windows_per_document: 2
seed: 0
"""
JUDGE = """
defaults:
  - none
  - _self_
_target_: own_package.LengthJudge
name: length
tolerance: 10000
"""


def composed(directory: Path, *overrides: str) -> Study:
    register_schemas()
    for group, name, option in (("dataset", "counting", TEXT), ("judging", "length", JUDGE)):
        (directory / group).mkdir(parents=True, exist_ok=True)
        (directory / group / f"{name}.yaml").write_text(option, encoding="utf-8")
    own = f"hydra.searchpath=[file://{directory}]"
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        return build(compose("config", [own, "dataset=counting", "judging=length", *overrides]), Study)


def test_a_job_uses_them(
    model_directory: Path, perfect_saes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "own_package.py").write_text(PACKAGE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "package")
    paths = [f"paths.output_dir={tmp_path / 'out'}", f"paths.cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(UserError, match=r"dataset\.words=0: must be greater than or equal to 1"):
        composed(tmp_path / "conf", *paths, "dataset.words=0")
    with pytest.raises(UserError, match=r"unknown configuration key: dataset\.letters"):
        composed(tmp_path / "conf", *paths, "+dataset.letters=1")
    cfg = composed(
        tmp_path / "conf", *paths, "sae=native", f"sae.root={perfect_saes}", "model=local",
        f"model.path={model_directory}", "layers.first=0", "layers.last=1", "tracking=none", "device=cpu",
        "evaluation.bootstrap_samples=50", "evaluation/controls=[vanilla,random,linear_map]", "judging.pairs=6",
        "progress=false",
    )  # fmt: skip
    result = run(cfg)
    assert result.metrics["explained_variance/encode_permute_decode"] > 0.5
    assert "explained_variance/linear_map" in result.metrics
    assert (result.metrics["judge/same"], result.metrics["judge/same/random"]) == (1.0, 1.0)
    assert cfg.config["dataset"]["words"] == 30 and cfg.config["judging"]["tolerance"] == 10000
