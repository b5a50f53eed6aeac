"""Permutation algebra and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from sae_match import Permutation, UserError


@st.composite
def partial_matchings(draw: st.DrawFn, n_a: int | None = None) -> Permutation:
    n_a = draw(st.integers(1, 8)) if n_a is None else n_a
    n_b = draw(st.integers(1, 8))
    order = draw(st.permutations(range(max(n_a, n_b))))[:n_a]
    kept = draw(st.lists(st.booleans(), min_size=n_a, max_size=n_a))
    indices = [j if j < n_b and keep else -1 for j, keep in zip(order, kept, strict=True)]
    return Permutation(torch.tensor(indices), n_b)


@given(st.data())
def test_composition_follows_each_feature(data: st.DataObject) -> None:
    first = data.draw(partial_matchings())
    second = data.draw(partial_matchings(n_a=first.n_b))
    composed = first.compose(second)
    for i, j in enumerate(first.indices.tolist()):
        assert composed.indices[i] == (-1 if j == -1 else second.indices[j])
    assert composed.n_b == second.n_b


@given(partial_matchings())
def test_inverse(permutation: Permutation) -> None:
    inverse = permutation.inverse()
    assert torch.equal(inverse.inverse().indices, permutation.indices)
    there_and_back = permutation.compose(inverse).indices
    assert torch.equal(there_and_back[permutation.matched], permutation.matched)


@given(partial_matchings())
def test_apply_places_each_activation_at_its_partner(permutation: Permutation) -> None:
    f = torch.arange(1.0, permutation.n_a + 1).expand(2, -1)
    out = permutation.apply(f)
    assert out.shape == (2, permutation.n_b)
    for i, j in enumerate(permutation.indices.tolist()):
        if j != -1:
            assert float(out[1, j]) == i + 1
    assert float(out.sum()) == float(f[:, permutation.matched].sum())


def test_controls() -> None:
    assert Permutation.identity(4, 2).indices.tolist() == [0, 1, -1, -1]
    first, again, other = (Permutation.random(500, seed=s).indices for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first.sort().values, torch.arange(500))
    assert int((first == torch.arange(500)).sum()) < 10
    assert len(Permutation.random(9, 5, seed=1).matched) == 5


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "permutations" / "layer_03_to_04.safetensors"
    Permutation(torch.tensor([2, -1, 0]), 5, {"metric": "both", "gap": 0.0}).save(path)
    back = Permutation.load(path)
    assert (back.indices.tolist(), back.n_b, back.provenance) == ([2, -1, 0], 5, {"metric": "both", "gap": 0.0})
    assert load_file(path)["permutation"].dtype == torch.int64
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a permutation file"):
        Permutation.load(path)
    with pytest.raises(UserError, match="not found"):
        Permutation.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("indices", "width", "message"),
    [
        (torch.tensor([0.0, 1.0]), 2, "int64"),
        (torch.tensor([0, 2]), 2, r"in 0\.\.1"),
        (torch.tensor([0, -2]), 2, r"-1 or in"),
        (torch.tensor([1, 1]), 2, "more than once"),
    ],
)
def test_invalid_permutations(indices: torch.Tensor, width: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Permutation(indices, width)


def test_composing_needs_a_common_layer() -> None:
    with pytest.raises(UserError, match="cannot compose"):
        Permutation.identity(3).compose(Permutation.identity(4))
