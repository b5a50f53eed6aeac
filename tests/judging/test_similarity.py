"""Similarity of descriptions: TF-IDF by hand and by scikit-learn, planted explanations, jobs that read them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from sae_match import UserError, match
from sae_match.app.build import build
from sae_match.experiment import run
from sae_match.experiment.rerun import job_key
from sae_match.judging import similarity
from sae_match.judging.similarity import DescriptionSimilarity
from sae_match.matching.feature_pair import FeaturePair
from sae_match.plan.plan import make_plan
from sae_match.saes import save_native
from sae_match.store import Store
from sae_match.study import Study
from tests.builders import random_sae
from tests.compositions import composed

WORDS = ["river", "stone", "cloud", "music", "engine", "winter", "garden", "letter"]


def write(root: Path, **layers: Mapping[int, str]) -> str:
    """Explanation files of layers `l3`, `l4`, ...; returns the folder with {layer} in it."""
    for name, texts in layers.items():
        directory = root / f"{name[1:]}-res"
        directory.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"index": str(feature), "description": text}) for feature, text in texts.items()]
        (directory / "batch-0.jsonl").write_text("\n".join(lines))
    return str(root / "{layer}-res")


def pair_of(width_a: int, width_b: int, layers: tuple[int, int] = (3, 4)) -> FeaturePair:
    return FeaturePair(random_sae(width_a, seed=1), random_sae(width_b, seed=2), layers=layers)


def phrases(n: int, seed: int) -> dict[int, str]:
    """Explanations of 2 to 6 words, some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (n,), generator=generator)
    drawn = [torch.randint(len(WORDS), (int(length),), generator=generator).tolist() for length in lengths]
    return {feature: " ".join(WORDS[word] for word in words) for feature, words in enumerate(drawn)}


def test_cosines_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, l3={0: "river stone", 2: "the"}, l4={1: "river river", 0: "stone cloud"})
    with caplog.at_level("INFO", logger="sae_match"):
        found = DescriptionSimilarity(folder=folder).matrix(pair_of(3, 2))
    # n = 3 explanations with terms; river and stone are in two of them, cloud in one.
    common, rare = 1 + math.log(4 / 3), 1 + math.log(4 / 2)
    expected = torch.zeros(3, 2)
    expected[0, 0] = common / math.sqrt(2) / math.hypot(common, rare)
    expected[0, 1] = 1 / math.sqrt(2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    assert "2 of 3 features of layer 3 have no explanation" in caplog.text
    assert "0 of 2 features of layer 4 have no explanation" in caplog.text


def test_scikit_learns_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "BLOCK_ROWS", 7)
    a, b = phrases(30, seed=1), phrases(20, seed=2)
    pair = pair_of(30, 20)
    excluded = torch.arange(30) % 3 == 0, None
    found = DescriptionSimilarity(folder=write(tmp_path, l3=a, l4=b)).matrix(
        FeaturePair(pair.a, pair.b, layers=pair.layers, excluded=excluded)
    )
    vectors = TfidfVectorizer().fit_transform([*a.values(), *b.values()]).toarray()
    expected = torch.from_numpy(vectors[:30] @ vectors[30:].T).float()[~excluded[0]]
    torch.testing.assert_close(found, expected)


def test_permuted_explanations_are_recovered(tmp_path: Path) -> None:
    texts = {feature: f"{WORDS[feature % 8]} {WORDS[feature // 8]} number{chr(97 + feature)}" for feature in range(24)}
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    folder = write(tmp_path, l3=texts, l4={int(partner): texts[feature] for feature, partner in enumerate(order)})
    compared, pair = DescriptionSimilarity(folder=folder), pair_of(24, 24)
    found = match(pair.a, pair.b, similarity=compared, layers=pair.layers)
    assert torch.equal(found.permutation.indices, order)
    torch.testing.assert_close(found.confidence, torch.ones(24))
    with pytest.raises(UserError, match=r"layers=\(t, t \+ 1\)"):
        match(pair.a, pair.b, similarity=compared)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((3, 5), "folder of descriptions: no folder .*5-res"),
        ((3, 6), "6-res holds no explanation in words"),
        ((3, 3), "tell nothing of a second SAE"),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, layers: tuple[int, int], message: str) -> None:
    folder = write(tmp_path, l3={0: "river"}, l6={0: "the and"})
    with pytest.raises(UserError, match=message):
        DescriptionSimilarity(folder=folder).matrix(pair_of(2, 2, layers))


def test_a_key_holds_the_files_content(tmp_path: Path) -> None:
    folder = write(tmp_path, l3={0: "river"}, l4={0: "stone"})
    compared, pair = DescriptionSimilarity(folder=folder), pair_of(2, 2)
    before = compared.pair_key(pair)
    assert compared.pair_key(pair) == before
    write(tmp_path, l4={0: "stones"})
    assert compared.pair_key(pair) != before


# -- jobs ------------------------------------------------------------------------------------------------


def study(root: Path, *overrides: str) -> Study:
    for layer in range(2):
        save_native(random_sae(seed=layer), root / "saes" / f"layer_{layer:02d}.safetensors")
    fixed = [
        "sae=native", f"sae.root={root / 'saes'}", "layers.first=0", "layers.last=1", "evaluation=weights_only",
        "tracking=none", f"judging.neuronpedia='{root}/{{layer}}-res'", "device=cpu", "progress=false",
        f"paths.output_dir={root / 'out'}", f"paths.cache_dir={root / 'cache'}",
    ]  # fmt: skip
    return build(composed(*fixed, *overrides), Study)


@pytest.mark.parametrize(
    ("how", "where", "number"),
    [
        ("matching=descriptions", "matching", "solver/mean_similarity"),
        (
            "evaluation/controls=[random,descriptions]",
            "evaluation.controls.descriptions.similarity",
            "fit_similarity/descriptions",
        ),
    ],
)
def test_a_job(tmp_path: Path, how: str, where: str, number: str) -> None:
    """It matches by words alone, and is another job when the explanations change, wherever their folder is named."""
    texts = {feature: f"{WORDS[feature % 8]} {WORDS[feature // 8]}" for feature in range(24)}
    write(tmp_path, l0=texts, l1=dict(zip(reversed(range(24)), texts.values(), strict=True)))
    own = [how, "judging.neuronpedia=null", f"{where}.folder='{tmp_path}/{{layer}}-res'"]
    numbers = run(study(tmp_path, how)).metrics
    assert numbers[number] == pytest.approx(1.0)
    before = [job_key(study(tmp_path, how)), job_key(study(tmp_path, *own))]
    assert None not in before
    assert [job_key(study(tmp_path, how)), job_key(study(tmp_path, *own))] == before
    write(tmp_path, l1=texts)
    after = [job_key(study(tmp_path, how)), job_key(study(tmp_path, *own))]
    assert after[0] != before[0] and after[1] != before[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["matching=descriptions"], "no folder .*1-res with the explanations of layer 1"),
        (["evaluation/controls=[random,descriptions]"], "no folder .*1-res with the explanations of layer 1"),
        (["matching=descriptions", "evaluation.null_alpha=0.05"], "null_alpha turns an SAE's parameters"),
        (["matching=descriptions", "sae.ceiling_filename=layer_01.safetensors", "evaluation=full"], "two seeds"),
    ],
)
def test_a_plan_refuses_what_cannot_be_compared(tmp_path: Path, overrides: list[str], message: str) -> None:
    write(tmp_path, l0={0: "river"})
    if "evaluation=full" in overrides:
        write(tmp_path, l1={0: "river"})
    plan = make_plan(study(tmp_path, *overrides), Store(tmp_path / "cache"))
    with pytest.raises(UserError, match=message):
        plan.require()


@pytest.mark.parametrize("folder", ["null", "no_layer"])
def test_a_folder_names_the_layer(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UserError, match=r"with \{layer\} in it: judging.neuronpedia=FOLDER"):
        study(tmp_path, "matching=descriptions", f"matching.folder={folder}")
