"""Matchings in the cache: shared, complete, checked on reading."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_match.content import content_key
from sae_match.experiment import matching_cache, run
from sae_match.experiment.matching_cache import cached_matching, matching_key
from sae_match.matching import Matching, make_solver
from sae_match.matching.feature_pair import FeaturePair
from sae_match.saes import SparseAutoencoder
from sae_match.store import Store
from sae_match.study import Study
from tests.builders import random_sae

Configured = Callable[..., Study]
A, B = random_sae(seed=1), random_sae(width=30, seed=2)


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[Matching]:
    """Every matching that is solved from here on."""
    found: list[Matching] = []
    inner = matching_cache.match_features

    def counting(*arguments: Any, **options: Any) -> Matching:
        found.append(inner(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(matching_cache, "match_features", counting)
    return found


def matching(cfg: Study, a: SparseAutoencoder = A, b: SparseAutoencoder = B, **excluded: torch.Tensor) -> Matching:
    solver = cfg.solver.on("cpu")
    return cached_matching(store(cfg), cfg.matching, solver, pair_of(cfg, a, b, **excluded))


def pair_of(
    cfg: Study,
    a: SparseAutoencoder = A,
    b: SparseAutoencoder = B,
    exclude_a: torch.Tensor | None = None,
    exclude_b: torch.Tensor | None = None,
) -> FeaturePair:
    return FeaturePair(a, b, cfg.folding.name, (exclude_a, exclude_b))


def store(cfg: Study) -> Store:
    return Store(cfg.paths.cache_dir)


def key_of(cfg: Study, a: SparseAutoencoder = A, b: SparseAutoencoder = B, mask: torch.Tensor | None = None) -> str:
    return content_key(matching_key(cfg.matching, cfg.solver, pair_of(cfg, a, b, mask)))


def entries(cfg: Study) -> list[Path]:
    return sorted((store(cfg).root / "matchings").iterdir())


def test_a_matching_comes_back_with_everything_it_came_with(
    configured: Configured, tmp_path: Path, solved: list[Matching]
) -> None:
    cfg = configured(tmp_path)
    first, second = matching(cfg), matching(cfg)
    assert len(solved) == 1
    assert second.permutation.indices.tolist() == first.permutation.indices.tolist()
    assert second.permutation.provenance == first.permutation.provenance
    assert (second.permutation.n_b, second.permutation.many_to_one) == (30, False)
    for name in ("objective", "lower_bound", "gap", "tolerance", "seconds", "statistics"):
        assert getattr(second, name) == getattr(first, name), name
    assert [path.suffix for path in entries(cfg)] == [".safetensors"]  # no lock, no temporary file


@pytest.mark.parametrize("solver", ["nearest", "random", "vanilla", "soft"])
def test_baselines_come_back_too(configured: Configured, tmp_path: Path, solved: list[Matching], solver: str) -> None:
    cfg = configured(tmp_path, f"solver={solver}")
    first, second = matching(cfg, b=random_sae(seed=3)), matching(cfg, b=random_sae(seed=3))
    assert len(solved) == 1
    assert second.permutation.many_to_one is first.permutation.many_to_one
    assert (second.lower_bound, second.gap) == (None, None)
    assert second.permutation.indices.tolist() == first.permutation.indices.tolist()


@pytest.mark.parametrize(
    ("override", "shared"),
    [
        ("dataset.seed=5", True),
        ("evaluation=weights_only", True),
        ("seed=4", True),
        ("solver.memory_limit_gib=1", True),
        ("matching=decoder", False),
        ("folding=none", False),
        ("matching.include_bias=false", False),
        ("matching.weights.W_enc=0.5", False),
        ("matching.n_pairs=7", False),
        ("matching.rejection_cost=0.1", False),
        ("solver=dense", False),
        ("solver.time_limit_s=60", False),
    ],
)
def test_what_can_change_a_matching_makes_it_another(
    configured: Configured, tmp_path: Path, override: str, shared: bool
) -> None:
    keys = {key_of(configured(tmp_path, *more)) for more in ([], [override])}
    assert len(keys) == (1 if shared else 2)


def test_saes_masks_scales_and_the_random_solvers_seed_are_in_the_key(configured: Configured, tmp_path: Path) -> None:
    cfg, mask = configured(tmp_path), torch.arange(24) == 3
    plain = key_of(cfg)
    others = {
        key_of(cfg, B, A),
        key_of(cfg, A, random_sae(width=30, seed=7)),
        key_of(cfg, mask=mask),
        key_of(cfg, mask=~mask),
        key_of(cfg, A.replace(scale=torch.ones(24))),
    }
    assert len({plain, *others}) == 6
    unfolded = configured(tmp_path, "folding=none")
    scaled = A.replace(scale=torch.ones(24))
    assert key_of(unfolded) == key_of(unfolded, scaled)
    seeds = {key_of(configured(tmp_path, "solver=random", f"seed={s}")) for s in (0, 1)}
    assert len(seeds) == 2


def truncate(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(bytes(data))


def swap(path: Path, other: Path) -> None:
    shutil.copy(other, path)


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, swap, empty])
def test_a_damaged_entry_is_reported_and_built_again(
    configured: Configured,
    tmp_path: Path,
    solved: list[Matching],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path, Path], None],
) -> None:
    cfg = configured(tmp_path)
    first = matching(cfg)
    (entry,) = entries(cfg)
    matching(cfg, b=random_sae(width=30, seed=9))
    (other,) = set(entries(cfg)) - {entry}
    damage(entry, other)
    with caplog.at_level(logging.WARNING):
        again = matching(cfg)
    assert "damaged" in caplog.text and len(solved) == 3
    assert again.permutation.indices.tolist() == first.permutation.indices.tolist()
    caplog.clear()
    matching(cfg)
    assert len(solved) == 3 and "damaged" not in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"indices": np.arange(5)},
        {"indices": np.zeros(24, dtype=np.int64)},
        {"indices": np.arange(24) + 10},
        {"width_b": 24},
        {"objective": None},
        {"provenance": {}},
        {"statistics": "not json"},
    ],
    ids=["shape", "twice", "range", "width", "number", "origin", "text"],
)
def test_a_whole_file_with_a_wrong_content_is_not_believed(
    configured: Configured, tmp_path: Path, solved: list[Matching], wrong: dict[str, object]
) -> None:
    cfg = configured(tmp_path)
    first = matching(cfg)
    key = matching_key(cfg.matching, cfg.solver, pair_of(cfg))
    store(cfg).put("matchings", key, {**(store(cfg).get("matchings", key) or {}), **wrong})
    again = matching(cfg)
    assert len(solved) == 2
    assert again.permutation.indices.tolist() == first.permutation.indices.tolist()


def test_of_two_that_want_one_matching_one_solves(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, calls, inner = configured(tmp_path), [], matching_cache.match_features

    def slow(*arguments: Any, **options: Any) -> Matching:
        calls.append(1)
        time.sleep(0.3)
        return inner(*arguments, **options)

    monkeypatch.setattr(matching_cache, "match_features", slow)
    found: list[Matching] = []
    threads = [threading.Thread(target=lambda: found.append(matching(cfg))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert found[0].seconds == found[1].seconds and found[0].permutation.provenance == found[1].permutation.provenance


def test_jobs_of_a_sweep_share_their_matchings(
    configured: Configured, random_saes: Path, solved: list[Matching]
) -> None:
    run(configured(random_saes, output="first"))
    n = len(solved)
    assert n == 4  # three pairs and the ceiling of layer 1
    other = run(configured(random_saes, "dataset.documents=9", output="second"))
    far = run(configured(random_saes, "composition.max_distance=2", "evaluation=weights_only", output="third"))
    assert len(solved) == n + 2
    assert far.metrics["objective"] == pytest.approx(other.metrics["objective"])


def test_a_control_that_is_solved_otherwise_is_not_the_configured_matching(
    configured: Configured, tmp_path: Path
) -> None:
    cfg = configured(tmp_path)
    exact = matching(cfg)
    greedy = make_solver("greedy")
    for _ in range(2):
        control = cached_matching(store(cfg), cfg.matching, greedy, pair_of(cfg))
        assert control.permutation.provenance["solver"] == "greedy"
        assert control.gap is None and exact.gap is not None
    assert len(entries(cfg)) == 2


def test_exclusions_survive_the_cache(configured: Configured, tmp_path: Path) -> None:
    cfg = replace(configured(tmp_path))
    mask = torch.arange(24) < 4
    first, second = (matching(cfg, exclude_a=mask) for _ in range(2))
    assert second.permutation.indices.tolist() == first.permutation.indices.tolist()
    assert (second.permutation.indices[:4] == -1).all()
