"""From a model and a text by name to the tables of a pair, as in a notebook."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae_match import (
    PairSettings,
    UserError,
    evaluate_on_text,
    evaluate_pair,
    load_language_model,
    load_sae,
    load_text,
    match,
    residual_streams,
    top_tokens,
)
from tests.tiny_setting import D_MODEL


def test_from_names_to_tables(model_directory: Path, text_directory: Path, random_saes: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    model = load_language_model("local", "cpu", cache, path=str(model_directory))
    windows = load_text("local", model, cache, path=str(text_directory), documents=6, window_tokens=12)
    streams = residual_streams(model, windows, [1, 2], cache)
    x_a, x_b = streams.layer(1), streams.layer(2)
    assert x_a.shape == (windows.n_windows, 12, D_MODEL)
    a, b = (load_sae(random_saes / f"layer_{layer:02d}.safetensors") for layer in (1, 2))
    evaluation = evaluate_pair(a, b, match(a, b).permutation, x_a, x_b, windows.document, layers=(1, 2))
    assert "matching_score" in set(evaluation.to_frame()["metric"])
    table = top_tokens(a, x_a, windows, model, [3, 5], k=2, context=3)
    f = a.encode(x_a[:, 1:])[..., 3]
    peaks = f.amax(dim=1)
    rows = table[table["feature"] == 3]
    assert rows["activation"].tolist() == pytest.approx(peaks.sort(descending=True).values[:2].tolist())
    window = int(peaks.argmax())
    position = 1 + int(f[window].argmax())
    assert rows.iloc[0]["token"] == model.tokenizer.decode([int(windows.ids[window, position])])
    before = windows.ids[window, max(position - 3, 0) : position]
    assert rows.iloc[0]["before"] == model.tokenizer.decode(before.tolist())


def test_a_model_brings_its_bos_and_sink_positions(
    model_directory: Path, text_directory: Path, random_saes: Path, tmp_path: Path
) -> None:
    model = load_language_model("local", "cpu", tmp_path, path=str(model_directory), bos="none", sink_positions=3)
    assert (model.bos, model.sink_positions) == ("none", 3)
    windows = load_text("local", model, tmp_path, path=str(text_directory), documents=6, window_tokens=12)
    a, b = (load_sae(random_saes / f"layer_{layer:02d}.safetensors") for layer in (1, 2))
    permutation = match(a, b).permutation
    found = evaluate_on_text(a, b, permutation, model, windows, (1, 2), tmp_path)
    streams = residual_streams(model, windows, [1, 2], tmp_path)
    settings = PairSettings(sink_positions=3)
    direct = evaluate_pair(
        a, b, permutation, streams.layer(1), streams.layer(2), windows.document, layers=(1, 2), settings=settings
    )
    assert found.to_frame().equals(direct.to_frame())
    table = top_tokens(a, streams.layer(1), windows, model, [3], k=1)
    assert float(table["activation"].iloc[0]) == pytest.approx(float(a.encode(streams.layer(1)[:, 3:])[..., 3].max()))
    with pytest.raises(UserError, match=r"features \[24\]: the SAE has features 0\.\.23"):
        top_tokens(a, streams.layer(1), windows, model, [24])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt_2", {}, r"model=gpt_2: must be one of .*gpt2.* \(did you mean gpt2\?\)$"),
        ("smolm2_135m", {}, r"\(did you mean smollm2_135m\?\)$"),
        ("mine", {}, r"model=mine: must be one of [\w, ]+$"),
        ("local", {}, "model=local: set path"),
        ("local", {"path": "x", "widht": 3}, "model=local: widht"),
    ],
)
def test_what_is_wrong_is_named(name: str, changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_language_model(name, "cpu", tmp_path, **changes)


def test_streams_are_captured_once(
    model_directory: Path, text_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_language_model("local", "cpu", tmp_path, path=str(model_directory))
    windows = load_text("local", model, tmp_path, path=str(text_directory), documents=2, window_tokens=8)
    first = residual_streams(model, windows, [0], tmp_path).layer(0)
    with pytest.raises(UserError, match=r"has blocks 0 to \d+; asked for the residual stream after 40$"):
        residual_streams(model, windows, [0, 40], tmp_path)

    def no_pass(*_: object, **__: object) -> None:
        raise AssertionError("captured again")

    monkeypatch.setattr(model.hf, "forward", no_pass)
    assert torch.equal(residual_streams(model, windows, [0], tmp_path).layer(0), first)
