"""The permutations of a span as one file: round trips, what is checked, and from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_match import Permutation, UserError, load_permutations, match
from sae_match.matching.published import PERMUTATIONS, save_permutations
from tests.builders import random_sae
from tests.hub_server import Hub

SAES = {layer: random_sae(seed=layer) for layer in (3, 4, 5)}
FOUND = {(a, a + 1): match(SAES[a], SAES[a + 1]).permutation for a in (3, 4)}


def test_what_is_published_is_read_back(tmp_path: Path) -> None:
    partial = Permutation(torch.tensor([-1, 4, 4]), 6, {"sae_a": "x", "sae_b": FOUND[3, 4].provenance["sae_a"]}, True)
    wide = {(1, 3): Permutation(partial.indices, 24, partial.provenance, True), **FOUND}
    save_permutations(tmp_path / PERMUTATIONS, wide)
    for source in (tmp_path, str(tmp_path), tmp_path / PERMUTATIONS):
        again = load_permutations(source, saes=SAES)
        assert list(again) == [(1, 3), (3, 4), (4, 5)]
        for layers, one in again.items():
            assert torch.equal(one.indices, wide[layers].indices) and one.indices.dtype == torch.int64
            assert (one.n_b, one.many_to_one) == (wide[layers].n_b, wide[layers].many_to_one)
            assert one.provenance == {**wide[layers].provenance, "layer_a": layers[0], "layer_b": layers[1]}
    save_permutations(tmp_path / "again", dict(reversed(wide.items())))
    assert (tmp_path / "again").read_bytes() == (tmp_path / PERMUTATIONS).read_bytes()


def test_other_saes_are_refused(tmp_path: Path) -> None:
    save_permutations(tmp_path / PERMUTATIONS, FOUND)
    with pytest.raises(UserError, match="layer 4 was matched with another SAE"):
        load_permutations(tmp_path, saes={4: random_sae(seed=9)})


def test_permutations_join_one_sae_per_layer(tmp_path: Path) -> None:
    other = match(random_sae(seed=8), SAES[5]).permutation
    save_permutations(tmp_path / PERMUTATIONS, {(3, 4): FOUND[3, 4], (4, 5): other})
    with pytest.raises(UserError, match="joins another SAE of layer 4"):
        load_permutations(tmp_path)


def _about(**changes: Any) -> dict[str, Any]:
    ends = {"layer_a": 0, "layer_b": 1, "sae_a": "a", "sae_b": "b"}
    return {"width_b": 2, "many_to_one": False, "provenance": ends} | changes


@pytest.mark.parametrize(
    ("indices", "about", "name"),
    [
        (torch.tensor([0, 2], dtype=torch.int32), _about(), "layer_0_to_1"),
        (torch.tensor([1, 1], dtype=torch.int32), _about(), "layer_0_to_1"),
        (torch.tensor([1.0, 0.0]), _about(), "layer_0_to_1"),
        (torch.tensor([1, 0], dtype=torch.int32), _about(), "layer_1_to_2"),
        (torch.tensor([1, 0], dtype=torch.int32), _about(provenance={"layer_a": 0, "layer_b": 1}), "layer_0_to_1"),
        (torch.tensor([1, 0], dtype=torch.int32), [], "layer_0_to_1"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, indices: torch.Tensor, about: Any, name: str) -> None:
    save_file({name: indices}, tmp_path / PERMUTATIONS, {"permutations": json.dumps({name: about})})
    with pytest.raises(UserError):
        load_permutations(tmp_path)
    (tmp_path / PERMUTATIONS).write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="not a readable file of permutations"):
        load_permutations(tmp_path)


def test_they_come_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    save_permutations(tmp_path / "folder" / PERMUTATIONS, FOUND)
    hub.publish("someone/matched", tmp_path / "folder")
    assert torch.equal(load_permutations("someone/matched", saes=SAES)[3, 4].indices, FOUND[3, 4].indices)
    with pytest.raises(UserError, match="nobody/nothing"):
        load_permutations("nobody/nothing")
    with pytest.raises(UserError, match="no such folder, and no OWNER/NAME"):
        load_permutations(tmp_path / "missing")
