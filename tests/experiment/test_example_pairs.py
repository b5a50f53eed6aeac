"""The example pairs of a job: their contexts are where the whole SAE is most active."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from sae_match import load_sae
from sae_match.experiment import run
from sae_match.experiment.contexts import only_features
from sae_match.language_model import load_language_model
from sae_match.report.examples import BEST, WORST, read_examples
from sae_match.saes.activation import Activation, ActivationKind
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import load_windows
from tests.builders import random_sae

Configured = Callable[..., Study]


def test_contexts_are_where_the_features_are_most_active(configured: Configured, random_saes: Path) -> None:
    cfg = configured(random_saes, "layers.first=1", "layers.last=2")
    directory = run(cfg).directory
    examples = read_examples(directory / "example_pairs.csv")
    assert {BEST, WORST} < set(examples["kind"]) and len(examples) <= 24
    features = pd.read_parquet(directory / "features.parquet").set_index("feature")
    model = load_language_model(cfg.model, "cpu", Store(cfg.paths.cache_dir))
    windows = load_windows(cfg.dataset, model.tokenizer, Store(cfg.paths.cache_dir), cfg.model.bos)
    streams = model.resid_post(windows.ids, [1, 2])
    for row in examples.itertuples():
        assert features.loc[row.feature, "partner"] == row.partner
        assert features.loc[row.feature, "active"] == row.active >= cfg.evaluation.min_count
        for layer, feature, contexts in ((1, row.feature, row.contexts), (2, row.partner, row.partner_contexts)):
            f = load_sae(random_saes / f"layer_{layer:02d}.safetensors").encode(streams[layer][:, 1:])[..., feature]
            window, position = divmod(int(f.argmax()), f.shape[1])
            # Five words before, the word, five after; word i has id i + 1.
            ids = windows.ids[window].tolist()
            words = [f"w{i - 1}" for i in ids]
            at = position + 1
            expected = " ".join([*words[max(0, at - 5) : at], f"«{words[at]}»", *words[at + 1 : at + 6]])
            assert contexts.split(" | ")[0] == expected
            assert 1 <= len(contexts.split(" | ")) <= 3


def test_weights_only_has_examples_without_contexts(configured: Configured, random_saes: Path) -> None:
    directory = run(configured(random_saes, "layers.last=1", "evaluation=weights_only")).directory
    examples = read_examples(directory / "example_pairs.csv")
    assert examples["kind"].tolist() == [BEST] * 12 + [WORST] * 12
    assert set(examples["contexts"]) == {""} and examples["matching_score"].isna().all()


@pytest.mark.parametrize("activation", [Activation(), Activation(ActivationKind.topk, k=4)])
def test_some_features_fire_as_they_do_in_the_whole(activation: Activation) -> None:
    sae = random_sae(width=24, d=8, seed=3).replace(activation=activation)
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)) * 5
    alone = only_features(sae, [7, 2])
    whole = sae.encode(x)
    found = alone.encode(x) if alone is not sae else whole
    at = [7, 2] if alone is sae else [0, 1]
    torch.testing.assert_close(found[:, at], whole[:, [7, 2]])
    assert (alone is sae) == (activation.k is not None) and bool((whole[:, [7, 2]] > 0).any())
