"""Which SAEs the permutations of a record join, from the permutations' own headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_DESCRIBED = ("_target_", "repo_id", "revision", "width", "l0", "site")
"""Keys of the `sae` group that say what an SAE is and where it is from; local paths are left out (private)."""


@dataclass(frozen=True)
class SaeReference:
    """An SAE by content: what is known of it without its weights.

    Attributes:
        name: the configuration's short name of the SAEs.
        layer: the block whose output it reads.
        content_hash: SHA-256 of its parameters.
        described: where it is from, as configured.
    """

    name: str
    layer: int
    content_hash: str
    described: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {"name": self.name, "layer": self.layer, "content_hash": self.content_hash, **self.described}


def sae_references(permutations: Path, config: Mapping[str, Any]) -> list[SaeReference]:
    """The SAEs that the permutations in a folder join, by layer.

    Args:
        config: the job's resolved configuration as nested plain dicts.

    Raises:
        ValueError: a file is no permutation of a record, or two files name different SAEs of one layer.
    """
    sae = config.get("sae", {})
    described = {key: sae[key] for key in _DESCRIBED if sae.get(key) is not None}
    found: dict[int, str] = {}
    for path in sorted(permutations.glob("*.safetensors")):
        provenance = _provenance(path)
        for side in ("a", "b"):
            layer, content = int(provenance[f"layer_{side}"]), str(provenance[f"sae_{side}"])
            if found.setdefault(layer, content) != content:
                raise ValueError(f"{path}: layer {layer} is another SAE than in the files before it")
    name = str(sae.get("name", "sae"))
    return [SaeReference(name, layer, found[layer], described) for layer in sorted(found)]


def _provenance(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="numpy") as stored:
            provenance = json.loads((stored.metadata() or {})["provenance"])
        _ = [provenance[key] for key in ("layer_a", "layer_b", "sae_a", "sae_b")]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no permutation of a record ({error})") from error
    return dict(provenance)
