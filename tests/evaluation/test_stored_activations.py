"""What a pass collected survives being stored, to the last bit; wrong arrays are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_match import Permutation
from sae_match.evaluation.activations import (
    ActivationRequest,
    ActivationStatistics,
    compute_activations,
    from_arrays,
    to_arrays,
)
from sae_match.evaluation.pair import activation_rows
from sae_match.evaluation.splices import SpliceUnits
from sae_match.matching import UNMATCHED
from sae_match.metrics.bootstrap import Bootstrap
from sae_match.metrics.registry import BUILT_IN
from tests.builders import random_sae, splices_of_pair

A, B = random_sae(width=24, seed=1), random_sae(width=30, seed=2)


def permutations() -> dict[str, Permutation]:
    matched = Permutation.random(24, 30, seed=3)
    matched.indices[4] = UNMATCHED
    return {"matched": matched, "random": Permutation.random(24, 30, seed=4)}


def one_pass() -> tuple[ActivationStatistics, ActivationRequest]:
    generator = torch.Generator().manual_seed(0)
    x_a, x_b = (torch.randn(9, 7, 8, generator=generator) * 2 for _ in range(2))
    document = torch.tensor([0, 0, 1, 1, 1, 2, 3, 4, 4])
    known = permutations()
    splices = splices_of_pair(A, B, known, SpliceUnits.theta, quantiles=[0.5])
    request = ActivationRequest(A, B, x_a, x_b, document, known, splices)
    return compute_activations(request), request


def test_nothing_is_lost() -> None:
    statistics, request = one_pass()
    arrays = to_arrays(statistics)
    assert {name: array.dtype.itemsize for name, array in arrays.items() if name.startswith("active")} == {
        "active_a": 1,
        "active_b": 1,
    }
    assert [name for name in arrays if name.startswith("target_") and name[-1] != "0"] == []
    found = from_arrays(arrays, request)
    for side in ("a", "b"):
        before, after = getattr(statistics, side), getattr(found, side)
        assert torch.equal(before.tokens, after.tokens) and torch.equal(before.active, after.active)
        assert after.active.dtype == torch.int64
    assert list(found.reconstruction) == list(request.splices) and list(found.together) == ["matched", "random"]
    for variant, counts in statistics.together.items():
        assert torch.equal(counts.together, found.together[variant].together)
        assert torch.equal(counts.partners, found.together[variant].partners)
    for name, sums in statistics.reconstruction.items():
        for field, values in vars(sums).items():
            assert torch.equal(values, getattr(found.reconstruction[name], field)), (name, field)


def test_metrics_are_the_same_numbers() -> None:
    statistics, request = one_pass()
    found = from_arrays(to_arrays(statistics), request)
    bootstrap = Bootstrap(5, 20)
    for one, other in zip(
        activation_rows(BUILT_IN, statistics, bootstrap, (0, 1), 2),
        activation_rows(BUILT_IN, found, bootstrap, (0, 1), 2),
        strict=True,
    ):
        assert one.as_dict() == other.as_dict()
        assert one.estimate is not None and other.estimate is not None
        assert np.array_equal(one.estimate.replicates, other.estimate.replicates, equal_nan=True)


def test_large_counts_and_targets_that_differ_in_a_bit_are_kept() -> None:
    statistics, request = one_pass()
    statistics.a.active[0, 0] = 70_000
    other = statistics.reconstruction["layer_drop"]
    other.target = other.target + torch.finfo(torch.float64).eps * other.target.abs().max()
    arrays = to_arrays(statistics)
    assert arrays["active_a"].dtype == np.uint32
    found = from_arrays(arrays, request)
    assert int(found.a.active[0, 0]) == 70_000
    assert torch.equal(found.reconstruction["layer_drop"].target, other.target)
    assert not torch.equal(found.reconstruction["encode_decode_current"].target, other.target)


@pytest.mark.parametrize(
    "change",
    [
        {"active_a": None},
        {"active_b": np.zeros((5, 29), np.uint8)},
        {"tokens": np.zeros(5, np.float64)},
        {"error_2": np.zeros((5, 8), np.float32)},
        {"together_1": "text"},
    ],
    ids=["missing", "shape", "kind", "precision", "scalar"],
)
def test_other_arrays_are_refused(change: dict[str, object]) -> None:
    statistics, request = one_pass()
    arrays = {name: value for name, value in {**to_arrays(statistics), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=next(iter(change))):
        from_arrays(arrays, request)
