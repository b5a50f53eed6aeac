"""Permutation algebra and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

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


@given(st.data())
def test_many_to_one(data: st.DataObject) -> None:
    """Against a dense 0/1 matrix: applying sums, composing multiplies."""
    n_a, n_b = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    indices = data.draw(st.lists(st.integers(-1, n_b - 1), min_size=n_a, max_size=n_a))
    permutation = Permutation(torch.tensor(indices), n_b, many_to_one=True)
    matrix = torch.zeros(n_a, n_b)
    for i, j in enumerate(indices):
        if j != -1:
            matrix[i, j] = 1.0
    f = torch.arange(1.0, 2 * n_a + 1).view(2, 1, n_a)
    assert torch.equal(permutation.apply(f), f @ matrix)
    after = data.draw(partial_matchings(n_a=n_b))
    composed = permutation.compose(after)
    assert composed.many_to_one
    assert torch.equal(composed.apply(f), after.apply(permutation.apply(f)))
    with pytest.raises(UserError, match="many-to-one matching has no inverse"):
        permutation.inverse()


def test_many_to_one_round_trip(tmp_path: Path) -> None:
    shared = Permutation(torch.tensor([1, 1, -1]), 2, {"solver": "nearest"}, many_to_one=True)
    shared.save(tmp_path / "shared.safetensors")
    back = Permutation.load(tmp_path / "shared.safetensors")
    assert (back.indices.tolist(), back.n_b, back.many_to_one) == ([1, 1, -1], 2, True)
    assert back.provenance == {"solver": "nearest"}
    Permutation.identity(3).save(tmp_path / "plain.safetensors")
    assert not Permutation.load(tmp_path / "plain.safetensors").many_to_one
    # A file that says nothing is one-to-one, and one that is not is refused.
    save_file({"permutation": torch.tensor([1, 1])}, tmp_path / "old.safetensors")
    with pytest.raises(UserError, match="more than once"):
        Permutation.load(tmp_path / "old.safetensors")


def test_a_matching_of_parts_embedded_in_the_whole() -> None:
    part = Permutation(torch.tensor([1, -1, 0]), 2)
    whole = part.embedded(torch.tensor([0, 2, 3]), torch.tensor([1, 4]), n_a=5, n_b=6)
    assert (whole.indices.tolist(), whole.n_b) == ([4, -1, -1, 1, -1], 6)


def test_composing_needs_a_common_layer() -> None:
    with pytest.raises(UserError, match="cannot compose"):
        Permutation.identity(3).compose(Permutation.identity(4))


def test_equal_permutations_are_equal_files_that_the_library_reads(tmp_path: Path) -> None:
    provenance = {"metric": "both", "note": "Grüße", "seconds": 0.25}
    for name in ("a", "b", "c", "d"):
        Permutation(torch.tensor([2, -1, 0]), 5, dict(provenance)).save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in ("a", "b", "c", "d")}) == 1
    assert load_file(tmp_path / "a")["permutation"].tolist() == [2, -1, 0]
    back = Permutation.load(tmp_path / "a")
    assert (back.n_b, back.provenance) == (5, provenance)
