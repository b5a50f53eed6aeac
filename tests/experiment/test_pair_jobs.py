"""A span split into one job per pair: each has the span's numbers, and the text goes through the model once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from sae_match import Permutation
from sae_match.experiment import Result, run
from sae_match.language_model import LanguageModel
from sae_match.study import Study

Configured = Callable[..., Study]


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The layers of every forward pass that captures."""
    seen: list[list[int]] = []
    real = LanguageModel.stream_resid_post

    def stream_resid_post(self: LanguageModel, ids: Tensor, layers: list[int], *rest: Any) -> None:
        seen.append(list(layers))
        real(self, ids, layers, *rest)

    monkeypatch.setattr(LanguageModel, "stream_resid_post", stream_resid_post)
    return seen


def jobs(configured: Configured, saes: Path, *more: str) -> list[Result]:
    spans = [[f"layers.first={t}", f"layers.last={t + 1}", *more] for t in range(3)]
    return [run(configured(saes, *span, output=f"pair_{t}")) for t, span in enumerate(spans)]


def of_pairs(result: Result) -> pd.DataFrame:
    """Rows about pairs of neighbors, by name, without what the machine's speed and memory decide."""
    table = result.pairs[result.pairs.layer_to == result.pairs.layer + 1]
    table = table[~table.metric.str.contains("seconds|memory")]
    return table.sort_values(["layer", "metric", "variant"]).reset_index(drop=True)


def test_pairs_alone_equal_the_span(configured: Configured, random_saes: Path) -> None:
    parts = jobs(configured, random_saes, "capture.first=0", "capture.last=3")
    whole = run(configured(random_saes, "layers.first=0", "layers.last=3", output="whole"))
    together = pd.concat([of_pairs(part) for part in parts], ignore_index=True)
    pd.testing.assert_frame_equal(together, of_pairs(whole), check_exact=True)
    for t, part in enumerate(parts):
        name = f"permutations/layer_{t:02d}_to_{t + 1:02d}.safetensors"
        one, other = (Permutation.load(result.directory / name).indices for result in (part, whole))
        assert torch.equal(one, other)


def test_the_first_job_captures_for_all(configured: Configured, random_saes: Path, captured: list[list[int]]) -> None:
    jobs(configured, random_saes, "capture.first=0", "capture.last=3")
    assert captured and all(layers == [0, 1, 2, 3] for layers in captured)


def test_without_it_each_job_runs_the_model_for_its_own_layers(
    configured: Configured, random_saes: Path, captured: list[list[int]]
) -> None:
    jobs(configured, random_saes)
    assert {tuple(layers) for layers in captured} == {(0, 1), (2,), (3,)}
