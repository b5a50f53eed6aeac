"""Matchers beside the job's own: folding of their own, confidence, rows, and two seeds of a layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_match import match
from sae_match.evaluation.controls import Matcher, MatchingControl, Random, Vanilla
from sae_match.experiment import run
from sae_match.experiment.matching import MatchedPair, PairMatcher, match_distant, match_neighbors, match_seeds
from sae_match.matching import make_solver
from sae_match.matching.baselines import GreedySolver, MutualSolver
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.problem import Metric
from sae_match.matching.similarity import WeightDistance
from sae_match.matching.weight_similarities import DecoderCosine, VirtualWeights
from sae_match.metrics.registry import BUILT_IN
from sae_match.pairs import Pair, Role, Site
from sae_match.record.labels import BUILT_IN_LABELS
from sae_match.saes.folding import FoldingKind
from sae_match.store import Store
from sae_match.study import Study
from tests.builders import random_sae

A, B = random_sae(width=24, seed=1), random_sae(width=24, seed=2)
BOTH = WeightDistance(name="both", metric=Metric.both)
CONTROLS: tuple[MatchingControl, ...] = (
    Vanilla(),
    Random(),
    Matcher(name="unfolded", similarity=BOTH, solver=CertifiedSolver(), folding=FoldingKind.none),
    Matcher(name="virtual", similarity=VirtualWeights(), solver=GreedySolver()),
    Matcher(name="mutual_cosine", similarity=DecoderCosine(), solver=MutualSolver()),
)
NAMES = {"unfolded", "virtual", "mutual_cosine"}


@pytest.fixture
def matcher(tmp_path: Path) -> PairMatcher:
    return PairMatcher(Store(tmp_path), BOTH, CertifiedSolver(), FoldingKind.theta)


def rows_of(found: MatchedPair) -> dict[tuple[str, str], float]:
    return {(row.variant, row.metric): row.value for row in found.rows}


def check(found: MatchedPair, own: str) -> None:
    """Confidence and rows of the matchers: as `match` finds them on its own."""
    assert set(found.confidence) == NAMES | {own}
    assert set(found.permutations) == NAMES | {own, "vanilla", "random"}
    rows = rows_of(found)
    for control in CONTROLS:
        if not isinstance(control, Matcher):
            assert (control.name, "objective") not in rows
            continue
        folding = control.folding or FoldingKind.theta
        alone = match(A, B, similarity=control.similarity, solver=control.solver, folding=folding)
        assert torch.equal(found.permutations[control.name].indices, alone.permutation.indices)
        assert torch.equal(found.confidence[control.name].nan_to_num(7), alone.confidence.nan_to_num(7))
        assert rows[control.name, "objective"] == pytest.approx(alone.objective)
        assert rows[control.name, "matched_pairs"] == len(alone.permutation.matched)
        assert rows[control.name, "solver_seconds"] > 0
        assert not any(name.startswith("solver/") for variant, name in rows if variant == control.name)
    assert rows["unfolded", "gap"] == 0 and ("virtual", "gap") not in rows
    assert rows["virtual", "mean_similarity"] == rows["virtual", "fit_similarity"]


def test_neighbors_have_the_rows_and_confidence_of_every_matcher(matcher: PairMatcher) -> None:
    found = match_neighbors(matcher, Pair(Site(0), Site(1), Role.adjacent), A, B, CONTROLS, BUILT_IN)
    check(found, "matched")
    assert torch.equal(found.confidence["matched"], match(A, B).confidence)
    folded, unfolded = (found.permutations[name].indices for name in ("matched", "unfolded"))
    assert not torch.equal(folded, unfolded)


def test_two_seeds_are_matched_by_every_matcher(matcher: PairMatcher) -> None:
    pair = Pair(Site(1), Site(1, source=1), Role.seeds)
    found = match_seeds(matcher, pair, A, B, BUILT_IN, CONTROLS)
    check(found, "ceiling")
    assert rows_of(found)["ceiling", "gap"] == 0 < rows_of(found)["ceiling", "objective"]
    alone = match_seeds(matcher, pair, A, B, BUILT_IN)
    assert set(alone.permutations) == set(alone.confidence) == {"ceiling"}


def test_an_exact_distant_matching_has_its_confidence(matcher: PairMatcher) -> None:
    controls = (Random(),)
    near = [
        match_neighbors(matcher, Pair(Site(t), Site(t + 1), Role.adjacent), A, B, controls, BUILT_IN) for t in (0, 1)
    ]
    far = match_distant(matcher, Pair(Site(0), Site(2), Role.distant), A, B, near, BUILT_IN)
    assert set(far.confidence) == {"exact"}
    assert torch.equal(far.confidence["exact"], match(A, B).confidence)


def test_trackers_are_sent_solver_numbers_of_the_matching_alone() -> None:
    main = BUILT_IN_LABELS.is_main
    assert main("gap") and main("gap/matched") and main("solver_seconds")
    assert main("decoder_cosine/virtual_weights") and main("matching_score/virtual_weights")
    other = (f"{name}/virtual_weights" for name in ("gap", "solver_seconds", "objective", "mean_similarity"))
    assert not any(map(main, other))


def test_matchers_of_one_similarity_compute_it_once(matcher: PairMatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[FoldingKind] = []
    inner = VirtualWeights.matrix

    def counting(self: VirtualWeights, pair: FeaturePair) -> Tensor:
        computed.append(pair.folding)
        return inner(self, pair)

    monkeypatch.setattr(VirtualWeights, "matrix", counting)
    controls = [
        Matcher(name=f"{name}_{folding}", similarity=VirtualWeights(), solver=make_solver(name), folding=folding)
        for folding in FoldingKind
        for name in ("certified", "greedy", "nearest", "mutual", "unbalanced")
    ]
    found = match_neighbors(matcher, Pair(Site(0), Site(1), Role.adjacent), A, B, controls, BUILT_IN)
    assert computed == list(FoldingKind)
    assert len(found.confidence) == 11


def test_a_job_with_every_matcher(configured: Callable[..., Study], random_saes: Path) -> None:
    study = configured(
        random_saes, "evaluation/controls=matchers", "layers.last=1", "sae.ceiling_filename=null",
        "dataset.documents=4", "evaluation.fit_documents=4", "evaluation.splice_documents=1",
        "evaluation.bootstrap_samples=5",
    )  # fmt: skip
    matchers = {control.name: control for control in study.evaluation.matchers if isinstance(control, Matcher)}
    assert len(matchers) == 34
    for name, matcher in matchers.items():
        similarity, solver = matcher.similarity.name, matcher.solver.name
        unfolded = matcher.folding is FoldingKind.none and similarity != "both_no_bias"
        folding = "_unfolded" if unfolded else ""
        assert name == similarity + folding + ("" if solver == "certified" else f"_{solver}")
        assert solver == "certified" or matcher.label.endswith(f", {solver}")
        assert (matcher.folding is None) == (similarity in ("decoder_cosine", "correlation", "semantic_transport"))
    result = run(study)
    status = json.loads((result.directory / "status.json").read_text(encoding="utf-8"))
    assert any("delta losses have no intervals: 1 documents" in warning for warning in status["warnings"])
    found = result.pairs
    table = (
        found[found.layer_to == 1]
        .drop_duplicates(["variant", "metric"])
        .pivot(index="variant", columns="metric", values="value")
    )
    assert table.loc[list(matchers), ["objective", "matched_pairs", "solver_seconds"]].notna().all(axis=None)
    certified = [name for name, matcher in matchers.items() if matcher.solver.name == "certified"]
    assert (table.loc[certified, "gap"] == 0).all() and len(certified) == 12
    assert table.loc["both", "objective"] == pytest.approx(table.loc["matched", "objective"])
    for name in ("both", "decoder_cosine", "virtual_weights", "correlation", "semantic_transport"):
        assert table.loc[name, "objective"] <= table.loc[f"{name}_greedy", "objective"]
        assert table.loc[f"{name}_mutual", "matched_pairs"] < table.loc[name, "matched_pairs"] == 24
