"""Passes over a pair's tokens: committed one by one, found by the next attempt, gone when the job is done."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_match import Permutation, SparseAutoencoder
from sae_match.content import content_key
from sae_match.entries import list_entries, read_mark
from sae_match.evaluation import linear_map
from sae_match.evaluation.activations import ActivationRequest, ActivationStatistics
from sae_match.evaluation.splices import SpliceUnits
from sae_match.experiment import evaluation, run
from sae_match.experiment import passes as passes_module
from sae_match.experiment import saes as saes_module
from sae_match.experiment.passes import activations, pass_key
from sae_match.matching import by_similarity
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.problem import SimilarityProblem
from sae_match.store import Store
from sae_match.study import Study
from tests.builders import random_sae, splices_of_pair
from tests.faults.kill_loop import scientific_results

Configured = Callable[..., Study]
A, B = random_sae(seed=1), random_sae(seed=2)
MORE = ("composition.max_distance=2", "composition.starts=[0]", "evaluation/controls=[vanilla,random,linear_map]",
        "evaluation.fit_documents=2", "dataset.documents=6")  # fmt: skip


class Died(BaseException):
    """Stands for SIGKILL: nothing handles it."""


class Passes:
    """Counts the passes that are really made, and dies before the one with a given number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.dies_at = 0, -1
        self.inner = passes_module.compute_activations
        monkeypatch.setattr(passes_module, "compute_activations", self)

    def __call__(self, *arguments: Any) -> ActivationStatistics:
        if self.made == self.dies_at:
            raise Died
        self.made += 1
        return self.inner(*arguments)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    return Passes(monkeypatch)


def entries(cfg: Study) -> list[Path]:
    return sorted((Store(cfg.paths.cache_dir).root / "activations").glob("*.safetensors"))


def test_a_killed_job_loses_the_pass_in_hand_and_its_results_are_the_same(
    configured: Configured, random_saes: Path, passes: Passes, tmp_path: Path
) -> None:
    undisturbed = configured(random_saes, *MORE, f"paths.cache_dir={tmp_path / 'other_cache'}", output="undisturbed")
    run(undisturbed)
    # three pairs, the two seeds of layer 1, and the pairs 0 -> 2
    assert passes.made == 5
    assert entries(undisturbed) == []

    cfg = configured(random_saes, *MORE)
    passes.made, passes.dies_at = 0, 3
    with pytest.raises(Died):
        run(cfg)
    assert len(entries(cfg)) == 3
    passes.made, passes.dies_at = 0, -1
    run(cfg)
    assert passes.made == 2
    assert entries(cfg) == []
    assert scientific_results(tmp_path / "out") == scientific_results(tmp_path / "undisturbed")
    documents = [(tmp_path / name / "documents.parquet").read_bytes() for name in ("out", "undisturbed")]
    assert documents[0] == documents[1]


def test_what_is_known_needs_no_linear_map(
    configured: Configured, random_saes: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    fit = linear_map.fit_linear_map

    def counting(*arguments: Any) -> Any:
        fitted.append(1)
        return fit(*arguments)

    monkeypatch.setattr(linear_map, "fit_linear_map", counting)
    cfg = configured(
        random_saes,
        "evaluation/controls=[linear_map]",
        "evaluation.fit_documents=2",
        "dataset.documents=6",
        "layers.last=1",
    )
    run(cfg)
    assert len(fitted) == 2  # for the activations, then for the losses
    run(cfg)
    assert len(fitted) == 3  # the losses are in the cache, the activations are gone with the finished job


def test_a_failure_after_the_passes_keeps_them(
    configured: Configured, random_saes: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = configured(random_saes)

    def broken(*_: Any) -> None:
        raise RuntimeError("no room for a figure")

    with monkeypatch.context() as broken_figures:
        broken_figures.setattr("sae_match.experiment.job.draw_figures", broken)
        with pytest.raises(RuntimeError, match="figure"):
            run(cfg)
    made = passes.made
    run(cfg)
    assert passes.made == made


def test_what_another_job_has_committed_stays_with_it(
    configured: Configured, random_saes: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes.dies_at = 2
    killed = configured(random_saes, "evaluation.min_count=3", output="killed")
    with pytest.raises(Died):
        run(killed)
    passes.made, passes.dies_at = 0, -1
    run(configured(random_saes, output="other"))
    assert passes.made == 2  # the two that the killed job had made were found
    assert len(entries(killed)) == 2
    run(killed)
    assert passes.made == 4 and entries(killed) == []


def test_an_entry_that_cannot_be_removed_fails_no_job(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def held(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "activations" and path.suffix == ".safetensors" and not path.name.startswith("."):
            raise PermissionError("in use")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", held)
    cfg = configured(random_saes, "layers.last=1")
    assert run(cfg).metrics
    assert len(entries(cfg)) >= 1


def test_a_damaged_entry_is_collected_anew(
    configured: Configured, random_saes: Path, passes: Passes, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = configured(random_saes, "layers.last=1", "sae.ceiling_filename=null")
    known = {"matched": Permutation.random(24, 24, seed=0)}
    splices = splices_of_pair(A, B, known, SpliceUnits.raw)
    x, document = torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 3])
    request = ActivationRequest(A, B, x, x, document, known, splices)
    first = activations(Store(cfg.paths.cache_dir), request, {})
    (entry,) = entries(cfg)
    mark = read_mark(entry)
    Store(cfg.paths.cache_dir).put(mark["kind"], mark["key"], {"tokens": first.a.tokens})
    with caplog.at_level(logging.WARNING):
        again = activations(Store(cfg.paths.cache_dir), request, {})
    assert "damaged" in caplog.text and passes.made == 2
    assert torch.equal(first.a.active, again.a.active)
    activations(Store(cfg.paths.cache_dir), request, {})
    assert passes.made == 2


def test_the_key_holds_everything_that_changes_a_pass() -> None:
    x, document = torch.randn(2, 5, 8), torch.tensor([0, 1])

    def key(
        a: SparseAutoencoder = A,
        b: SparseAutoencoder = B,
        seed: int = 0,
        units: SpliceUnits = SpliceUnits.raw,
        **facts: object,
    ) -> str:
        known = {"matched": Permutation.random(24, 24, seed=seed)}
        splices = splices_of_pair(a, b, known, units)
        return content_key(pass_key(ActivationRequest(a, b, x, x, document, known, splices), facts))

    scaled = A.replace(scale=torch.full((24,), 0.7))
    more = {"matched": Permutation.random(24, 24, seed=0), "vanilla": Permutation.identity(24, 24)}
    plain = ActivationRequest(A, B, x, x, document, more, splices_of_pair(A, B, more, SpliceUnits.raw))
    others = [
        plain,
        replace(plain, permutations=dict(reversed(more.items()))),
        replace(plain, splices=splices_of_pair(A, B, more, SpliceUnits.raw, quantiles=[0.5])),
        replace(plain, sink_positions=2),
    ]
    keys = [
        key(), key(a=B, b=A), key(seed=1), key(units=SpliceUnits.theta), key(a=scaled, units=SpliceUnits.theta),
        key(streams="ab"), key(layers=(0, 1)), key(layers=(1, 0)),
        *(content_key(pass_key(other, {})) for other in others),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key() == key(a=random_sae(seed=1))
    assert key() == key(a=scaled), "raw units know no theta"
    assert pass_key(plain, {}) == pass_key(replace(plain, batch_windows=1), {})


def test_a_matching_by_correlation_is_solved_once(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    CertifiedSolver().warm_up(SimilarityProblem(torch.rand(2, 2)))  # solves a small problem of its own
    solved: list[int] = []
    solve = by_similarity.match_by_similarity

    def counting(*arguments: Any, **options: Any) -> Any:
        solved.append(1)
        return solve(*arguments, **options)

    monkeypatch.setattr(by_similarity, "match_by_similarity", counting)
    more = ["evaluation/controls=[correlation]", "evaluation.fit_documents=2", "dataset.documents=6", "layers.last=2"]
    first = run(configured(random_saes, *more, output="first"))
    again = run(configured(random_saes, *more, output="again"))
    assert len(solved) == 2
    assert first.metrics["fit_correlation/correlation"] == again.metrics["fit_correlation/correlation"]
    run(configured(random_saes, *more, "evaluation.fit_documents=3", output="third"))
    assert len(solved) == 4
    aside = [*more, "matching.dead_features=exclude"]
    run(configured(random_saes, *aside, output="fourth"))
    assert len(solved) == 6

    store = Store(configured(random_saes).paths.cache_dir)
    for entry in list_entries(store.root, ["matchings"])[0]:
        payload = store.get("matchings", entry.key) or {}
        if "mean_similarity" in payload["statistics"]:
            store.put("matchings", entry.key, {**payload, "indices": payload["indices"] + 100})
    with caplog.at_level(logging.WARNING):
        run(configured(random_saes, *more, output="fifth"))
    assert len(solved) == 8 and "damaged" in caplog.text


def test_dead_features_and_measured_scales_are_found_once(
    configured: Configured, random_saes: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []

    def counted(module: Any, name: str) -> None:
        inner = getattr(module, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return inner(*arguments, **options)

        monkeypatch.setattr(module, name, counting)

    counted(evaluation, "never_active")
    counted(saes_module, "measure_scale")
    more = ("matching.dead_features=exclude", "folding.scale=mean_activation", "sae.ceiling_filename=null")
    run(configured(random_saes, *more, f"paths.cache_dir={tmp_path / 'other_cache'}", output="undisturbed"))
    assert (calls.count("never_active"), calls.count("measure_scale")) == (4, 4)
    calls.clear()
    cfg = configured(random_saes, *more)
    passes.made, passes.dies_at = 0, 1
    with pytest.raises(Died):
        run(cfg)
    calls.clear()
    passes.dies_at = -1
    run(cfg)
    assert calls == []
    assert entries(cfg) == []
    assert scientific_results(tmp_path / "out") == scientific_results(tmp_path / "undisturbed")
