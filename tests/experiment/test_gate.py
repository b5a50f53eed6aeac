"""`sae-match-gate`: two SAEs or two records, a table, and an exit code for CI."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_match.experiment import run
from sae_match.gate import Number, main
from sae_match.saes import Activation, ActivationKind, save_native
from sae_match.study import Study
from tests.builders import identity_sae, permuted, random_sae


def table(out: str) -> dict[str, list[str]]:
    """The cells of every row by its name, without the interval of the change."""
    return {(cells := re.sub(r" \[.*?\]", "", line).split())[0]: cells[1:] for line in out.splitlines()[1:]}


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """An SAE that reconstructs everything, and the same with its features in another order, in one of two of them."""
    before, order = identity_sae(4), torch.tensor([3, 2, 1, 0, 4, 5, 6, 7])
    after = permuted(before, order)
    paths = [tmp_path / f"{name}.safetensors" for name in ("before", "after")]
    for path, sae in zip(paths, (before, after), strict=True):
        save_native(sae, path)
    return [str(path) for path in paths]


def test_weights_of_two_saes(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*pair, "--min", "decoder_cosine=0.99", "--max", "weight_mse/W_dec=1e-9"]) == 0
    assert table(capsys.readouterr().out)["decoder_cosine"] == ["1", "ok"]
    assert main([*pair, "--min", "decoder_cosine=1.01"]) == 1
    assert table(capsys.readouterr().out)["decoder_cosine"] == ["1", "below", "1.01"]


@pytest.mark.parametrize("shape", [(60, 4), (6, 10, 4)])
def test_activations(
    pair: list[str], tmp_path: Path, shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=shape).astype(np.float32))
    given = [*pair, "--activations", str(tmp_path / "x.npy")]
    assert main([*given, "--min", "matching_score=0.6", "--min", "explained_variance=0.99"]) == 0
    found = table(capsys.readouterr().out)
    assert found["matching_score"] == ["1", "ok"]
    assert found["explained_variance"] == ["1", "1", "+0", "ok"]
    assert found["l0"] == ["4", "4", "+0", "ok"]  # of each direction one sign
    save_native(random_sae(8, 4), Path(pair[1]))
    assert main([*given, "--min", "explained_variance=0.99", "--max", "l0=0.5"]) == 1
    found = table(capsys.readouterr().out)
    assert found["explained_variance"][3:] == ["below", "0.99"]
    assert found["l0"][3:] == ["above", "0.5"]


def test_saes_without_thresholds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = Activation(ActivationKind.topk, k=3)
    sae = random_sae().replace(threshold=torch.zeros(24), activation=top)
    save_native(sae, tmp_path / "a.safetensors")
    assert main([str(tmp_path / "a.safetensors")] * 2) == 0
    said = capsys.readouterr()
    assert "folded by decoder_norm" in said.err
    assert table(said.out)["decoder_cosine"] == ["1", "ok"]


def test_two_records(
    configured: Callable[..., Study], perfect_saes: Path, random_saes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    span = ("layers.last=2", "sae.ceiling_filename=null")
    good, bad = (
        str(run(configured(saes, *span, output=name)).directory)
        for saes, name in ((perfect_saes, "good"), (random_saes, "bad"))
    )
    capsys.readouterr()
    assert main([good, good]) == 0
    main([bad, good])
    assert table(capsys.readouterr().out)["matching_score"][-1] == "ok"
    assert main([good, bad]) == 1
    found = table(capsys.readouterr().out)
    assert found["matching_score"][-1] == "worse"
    score = json.loads((Path(good) / "metrics.json").read_text())["matching_score"]
    assert float(found["matching_score"][0]) == pytest.approx(score, rel=1e-3)
    assert main([good, bad, "--min", "decoder_cosine/random=2"]) == 1
    assert table(capsys.readouterr().out)["decoder_cosine/random"][-2:] == ["below", "2"]
    assert main([good, str(perfect_saes / "layer_00.safetensors")]) == 2
    metrics = Path(bad) / "metrics.json"
    stored = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({name: value for name, value in stored.items() if name != "matching_score"}))
    assert main([good, bad]) == 2
    assert "has no matching_score, which " in capsys.readouterr().err
    (Path(bad) / "status.json").write_text(
        json.dumps(json.loads((Path(bad) / "status.json").read_text()) | {"state": "failed"})
    )
    assert main([good, bad]) == 2
    assert "bad: the job is failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "fell"),
    [
        (Number("a", 0.5, 0.4, "higher", -0.2, -0.01), True),
        (Number("a", 0.5, 0.4, "higher", -0.2, 0.01), False),
        (Number("a", 0.5, 0.4, "higher"), True),
        (Number("a", 0.5, 0.6, "higher", 0.05, 0.2), False),
        (Number("a", 0.5, 0.6, "lower", 0.05, 0.2), True),
        (Number("a", 0.5, 0.6, "lower", -0.05, 0.2), False),
        (Number("a", 0.5, 0.6), False),
        (Number("a", None, 0.6, "lower"), False),
    ],
)
def test_what_counts_as_worse(number: Number, fell: bool) -> None:
    assert number.fell is fell


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--min", "matching_score=0.6"], "no number matching_score; there are decoder_cosine"),
        (["--activations", "missing.npy"], "--activations missing.npy: no .npy file of numbers"),
    ],
)
def test_wrong_input(pair: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*pair, *more]) == 2
    assert message in capsys.readouterr().err
    assert main(["missing.safetensors", pair[1]]) == 2


def test_wrong_arguments(pair: list[str], tmp_path: Path) -> None:
    for more in (["--min", "matching_score"], ["--min", "a=b"], ["--activations", "x", "--model", "y"]):
        with pytest.raises(SystemExit) as ended:
            main([*pair, *more])
        assert ended.value.code == 2
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert main([*pair, "--activations", str(tmp_path / "x.npy")]) == 2
