"""The permutations of a span of layers in one file, as they are published, and read back from a folder or the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sae_match.errors import UserError
from sae_match.files import atomic_path, reading
from sae_match.matching.permutation import Permutation
from sae_match.saes import SparseAutoencoder

PERMUTATIONS = "permutations.safetensors"

Layers = tuple[int, int]


def save_permutations(path: Path | str, permutations: Mapping[Layers, Permutation]) -> None:
    """Write permutations by (layer of A, layer of B): tensors `layer_11_to_12`, int32 with -1 = unmatched, and what
    produced each of them as JSON in the header. Equal permutations are equal files."""
    named = {f"layer_{a}_to_{b}": found for (a, b), found in sorted(permutations.items())}
    described = {
        name: {
            "width_b": found.n_b,
            "many_to_one": found.many_to_one,
            "provenance": {**found.provenance, "layer_a": a, "layer_b": b},
        }
        for (name, found), (a, b) in zip(named.items(), sorted(permutations), strict=True)
    }
    # One entry: the library orders several anew each time.
    metadata = {"permutations": json.dumps(described, sort_keys=True)}
    with atomic_path(Path(path)) as temporary:
        save_file({name: found.indices.to(torch.int32) for name, found in named.items()}, temporary, metadata)


def load_permutations(
    source: Path | str, saes: Mapping[int, SparseAutoencoder] | None = None, revision: str | None = None
) -> dict[Layers, Permutation]:
    """Permutations by (layer of A, layer of B), from a folder that `sae-match-report --publish` wrote, its file, or a
    repository of that content on the Hugging Face Hub.

    Args:
        source: folder, file, or OWNER/NAME on the hub.
        saes: SAEs by layer that they are to be used with; each must be the one that was matched.
        revision: of the repository.

    Raises:
        UserError: no such folder or repository, a damaged file, permutations that do not join one SAE per layer, or
            other SAEs than those that were matched.
    """
    path = _locate(source, revision)
    with reading(path, "file of permutations"):
        with safe_open(path, framework="pt") as file:
            described: dict[str, Any] = json.loads((file.metadata() or {})["permutations"])
            found = {name: _read(file.get_tensor(name), about) for name, about in described.items()}
        known: dict[int, tuple[str, int]] = {}
        permutations = {}
        for name, one in found.items():
            ends = int(one.provenance["layer_a"]), int(one.provenance["layer_b"])
            if name != f"layer_{ends[0]}_to_{ends[1]}":
                raise ValueError(f"{name} is from layer {ends[0]} to {ends[1]}")
            joined = (str(one.provenance["sae_a"]), one.n_a), (str(one.provenance["sae_b"]), one.n_b)
            for layer, sae in zip(ends, joined, strict=True):
                if known.setdefault(layer, sae) != sae:
                    raise ValueError(f"{name} joins another SAE of layer {layer} than the others")
            permutations[ends] = one
    for layer, own in (saes or {}).items():
        if layer in known and known[layer][0] != own.content_hash:
            raise UserError(
                f"{path}: layer {layer} was matched with another SAE (content {known[layer][0][:12]}) than "
                f"{own.source} ({own.content_hash[:12]})"
            )
    return permutations


def _locate(source: Path | str, revision: str | None) -> Path:
    path = Path(source)
    if path.exists():
        return path / PERMUTATIONS if path.is_dir() else path
    if str(source).count("/") != 1 or str(source).startswith(("/", ".", "~")):
        raise UserError(f"{source}: no such folder, and no OWNER/NAME of a hub repository")
    from sae_match.hub import download  # few need the hub's client
    from sae_match.hub_errors import Repository

    return download(Repository(str(source), revision, "permutations", "give its path"), PERMUTATIONS)


def _read(indices: torch.Tensor, about: Mapping[str, Any]) -> Permutation:
    if indices.dtype != torch.int32:
        raise ValueError(f"indices are int32, not {indices.dtype}")
    return Permutation(indices.long(), int(about["width_b"]), dict(about["provenance"]), bool(about["many_to_one"]))
