"""Judging as part of a job: rows, record, cache, and what is refused before long work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_match import Permutation, UserError
from sae_match.experiment import Result, run
from sae_match.record.pairs import read_pairs
from sae_match.study import Study
from tests.judging.chat_server import Response, chat_server, completion

Configured = Callable[..., Study]
FEW = ["layers.last=2", "judging.pairs=6", "judging.context_tokens=2"]


def lines(result: Result) -> list[dict[str, Any]]:
    text = (result.directory / "judgements.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.drawn
def test_planted_partners_score_above_random_ones(configured: Configured, perfect_saes: Path) -> None:
    """One set of features in another order in each layer: partners differ only in what the residual streams do."""
    result = run(configured(perfect_saes, "judging=offline", *FEW))
    stored = read_pairs(result.directory / "pairs.csv").set_index(["layer", "variant", "metric"])["value"]
    for layer in (0, 1):
        for variant in ("matched", "random", "vanilla"):
            shares = [stored[layer, variant, f"judge/{level}"] for level in ("same", "maybe", "different")]
            assert sum(shares) == pytest.approx(1.0)
            assert stored[layer, variant, "judge_count/answered"] == 6
    assert result.metrics["judge/score"] > result.metrics["judge/score/random"]
    assert result.metrics["judge_count/answered"] == 12  # summed over the layer pairs
    assert result.metrics["judge/same_low"] <= result.metrics["judge/same"] <= result.metrics["judge/same_high"]
    assert (result.directory / "figures" / "judge_same.png").is_file()


def test_the_record_says_what_was_judged(configured: Configured, random_saes: Path) -> None:
    result = run(configured(random_saes, "judging=offline", *FEW))
    found = lines(result)
    assert len(found) == 2 * 3 * 6
    permutation = Permutation.load(result.directory / "permutations" / "layer_01_to_02.safetensors")
    matched = [line for line in found if line["layer"] == 1 and line["variant"] == "matched"]
    assert all(int(permutation.indices[line["feature"]]) == line["partner"] for line in matched)
    vanilla = [line for line in found if line["layer"] == 1 and line["variant"] == "vanilla"]
    assert [line["feature"] for line in vanilla] == [line["feature"] for line in matched]
    assert all(line["feature"] == line["partner"] for line in vanilla)
    silent = set(result.features.loc[result.features["active"] == 0, "feature"])
    for line in found:
        assert (line["outcome"] == "undescribed") == (line["text_a"] is None or line["text_b"] is None)
        if line["text_a"] is not None:
            assert "«" in line["text_a"] and line["text_a"].startswith("Most activating tokens:")
    undescribed = {line["feature"] for line in matched if line["text_a"] is None}
    assert undescribed <= silent


def test_distant_layers_are_judged_on_the_same_features(configured: Configured, perfect_saes: Path) -> None:
    over_distance = ["composition.max_distance=2", "composition.starts=[0]", "judging=offline", *FEW]
    result = run(configured(perfect_saes, *over_distance))
    found = lines(result)
    near = [line["feature"] for line in found if (line["layer"], line["layer_to"]) == (0, 1)]
    for variant in ("composed", "exact", "random"):
        far = [line for line in found if (line["layer_to"], line["variant"]) == (2, variant) and line["layer"] == 0]
        assert [line["feature"] for line in far] == near[:6]
        assert f"composition/judge/score/{variant}/distance_1" in result.metrics
    composed = {line["feature"]: line["partner"] for line in found if line["variant"] == "composed"}
    exact = {line["feature"]: line["partner"] for line in found if line["variant"] == "exact"}
    assert composed == exact  # perfect SAEs: every step finds the planted partner
    score = "composition/judge/score/{}/distance_2"
    assert result.metrics[score.format("composed")] == result.metrics[score.format("exact")]
    assert result.metrics[score.format("composed")] > result.metrics[score.format("random")]
    assert result.metrics["judge_count/answered"] == 12  # neighbors only


def test_an_endpoint_job_resumes_from_its_answers(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    caplog.set_level("INFO")

    def respond(_: int, body: dict[str, Any]) -> Response:
        return completion("SAME") if body else Response(200, {"data": []})

    with chat_server(respond) as server:
        judging = ["judging=endpoint", f"judging.base_url={server.url}", "judging.api_key_variable=JUDGE_KEY"]
        result = run(configured(random_saes, *judging, *FEW))
        asked = len(server.requests)
        again = run(configured(random_saes, *judging, *FEW, output="again"))
        assert server.paths[asked:] == ["/v1/models"]
    assert server.paths[0] == "/v1/models"
    assert server.headers[1]["authorization"] == "Bearer sk-secret"
    assert lines(again) == lines(result)
    answers = [answer for line in lines(result) for answer in line["answers"]]
    assert {answer["order"] for answer in answers} == {"ab", "ba"}
    assert result.metrics["judge/same"] == 1.0
    assert result.metrics["judge/order_disagreement"] == 0.0
    assert "price unknown" in caplog.text
    kept = [path for path in result.directory.parent.rglob("*") if path.is_file()]
    assert len(kept) > 10
    assert not any(b"sk-secret" in path.read_bytes() for path in kept)
    assert "sk-secret" not in caplog.text


def test_a_failing_endpoint_costs_no_results(configured: Configured, random_saes: Path) -> None:
    with chat_server(lambda _, body: Response(400, {}) if body else Response(200, {})) as server:
        judging = ["judging=endpoint", f"judging.base_url={server.url}", "judging.api_key_variable=null"]
        result = run(configured(random_saes, *judging, *FEW))
    assert "judge/same" not in result.metrics
    assert result.metrics["judge_count/error"] > 0
    assert "matching_score" in result.metrics
    assert any("HTTP 400" in str(line["answers"]) for line in lines(result))


def neuronpedia(tmp_path: Path, layers: range, skip: int) -> str:
    for layer in layers:
        directory = tmp_path / "np" / f"{layer}-x" / "explanations"
        directory.mkdir(parents=True)
        entries = [{"index": str(f), "description": f"word{'abcdefgh'[f % 8] * 3}"} for f in range(24) if f != skip]
        (directory / "batch-0.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(tmp_path / "np" / "{layer}-x" / "explanations")


def test_explanations_need_neither_model_nor_text(configured: Configured, random_saes: Path, tmp_path: Path) -> None:
    folder = neuronpedia(tmp_path, range(3), skip=5)
    options = ["evaluation=weights_only", "model.path=/absent", "dataset.path=/absent", "layers.last=2"]
    result = run(configured(random_saes, "judging=offline", f"judging.neuronpedia='{folder}'", *options))
    for line in lines(result):
        if 5 in (line["feature"], line["partner"]):
            assert line["outcome"] == "undescribed"
        else:
            assert line["level"] == ("same" if line["feature"] % 8 == line["partner"] % 8 else "different")
    assert result.metrics["judge/same/vanilla"] == 1.0
    assert result.metrics["judge_count/undescribed/vanilla"] == 2


def test_what_cannot_begin_is_refused_before_matching(
    configured: Configured, random_saes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_matching(*_: object) -> None:
        raise AssertionError("matching began")

    monkeypatch.setattr("sae_match.experiment.steps.match_neighbors", no_matching)
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    folder = neuronpedia(tmp_path, range(3), skip=5)
    endpoint = ["judging=endpoint", "judging.base_url=http://127.0.0.1:9/v1"]
    for overrides, message in (
        ([*endpoint, "judging.api_key_variable=JUDGE_KEY"], "JUDGE_KEY is not set"),
        ([*endpoint, "judging.api_key_variable=null"], "Is the server running"),
        (["judging=offline", f"judging.neuronpedia='{folder}'"], "explanations of layer 3"),
        (["judging=offline", "evaluation=weights_only"], "judging.neuronpedia features are described"),
    ):
        with pytest.raises(UserError, match=message):
            run(configured(random_saes, *overrides))
