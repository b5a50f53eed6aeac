"""Top tokens of a job that follows paths: the tokens of the largest activations, as the tokenizer writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from sae_match import load_sae
from sae_match.experiment import run
from sae_match.language_model import load_language_model
from sae_match.report.cli import main
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import load_windows

Configured = Callable[..., Study]


def test_the_first_token_is_where_the_feature_is_most_active(configured: Configured, random_saes: Path) -> None:
    cfg = configured(random_saes, "composition.paths=true")
    directory = run(cfg).directory
    table = pd.read_parquet(directory / "top_tokens.parquet")
    assert list(table.columns) == ["layer", "feature", "token"]
    assert not table.duplicated().any()
    assert table.groupby(["layer", "feature"]).size().max() == 8
    model = load_language_model(cfg.model, "cpu", Store(cfg.paths.cache_dir))
    windows = load_windows(cfg.dataset, model.tokenizer, Store(cfg.paths.cache_dir), cfg.model.bos)
    x = model.resid_post(windows.ids, [2])[2][:, 1:]
    f = load_sae(random_saes / "layer_02.safetensors").encode(x).flatten(0, 1)
    ids = windows.ids[:, 1:].flatten()
    mine = table[table["layer"] == 2].groupby("feature")["token"].first()
    firing = (f.max(dim=0).values > 0).nonzero().flatten().tolist()
    assert mine.index.tolist() == firing
    for feature in firing:
        assert mine[feature] == f"w{int(ids[f[:, feature].argmax()]) - 1}"
    assert main([str(directory), "--output", str(directory.parent / "report")]) == 0
    page = (directory.parent / "report" / "paths.html").read_text(encoding="utf-8")
    assert f'"{mine[firing[0]]}' in page or f"{mine[firing[0]]} " in page


def test_a_later_attempt_without_text_leaves_no_tokens(configured: Configured, random_saes: Path) -> None:
    directory = run(configured(random_saes, "composition.paths=true")).directory
    assert (directory / "top_tokens.parquet").is_file()
    (directory / "status.json").unlink()  # as if it had not finished: another configuration may follow
    run(configured(random_saes, "composition.paths=true", "evaluation=weights_only"))
    assert not (directory / "top_tokens.parquet").exists()
    assert (directory / "paths.parquet").is_file()
