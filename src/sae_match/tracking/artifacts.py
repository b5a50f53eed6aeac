"""Permutations as a W&B artifact, and the SAEs they were made from as its inputs, by reference."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from safetensors import SafetensorError, safe_open

from sae_match.record.configuration import columns_of

PERMUTATIONS_TYPE, SAE_TYPE = "permutations", "sae"
REFERENCE_FILE = "sae.json"
MAX_ARTIFACT_NAME = 128
_DESCRIBED = ("_target_", "repo_id", "revision", "width", "l0", "site")
"""Keys of the `sae` group that tell what an SAE is and where it is from; local paths are left out (private)."""


def log_permutations(run: wandb.Run, directory: Path, config: Mapping[str, Any]) -> None:
    """Log a folder's permutations as `permutations-<run id>`, made from `sae-<name>-layer-<layer>` artifacts.

    An SAE's artifact holds no weights: one small file with its content hash and where it is from. Equal SAEs are one
    version of one artifact in every run that uses them, which is what W&B's lineage graph joins.

    Args:
        config: the job's resolved configuration as nested plain dicts.

    Raises:
        ValueError: there are no permutations, or a file is none.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ValueError(f"no permutations in {directory}")
    saes = sae_references(files, config)
    for sae in saes:
        artifact = wandb.Artifact(
            artifact_name(f"sae-{sae['name']}-layer-{sae['layer']:02d}"), type=SAE_TYPE, metadata=sae
        )
        # A file, because W&B tells versions apart by files and not by metadata.
        with artifact.new_file(REFERENCE_FILE) as stream:
            stream.write(json.dumps(sae, sort_keys=True, indent=2))
        # `use_artifact` refuses to work offline, and online waits for each upload in turn. This is the part of it that
        # does neither: the use is recorded when the artifact is uploaded, by the run or later by `wandb sync`.
        run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
    metadata = {**columns_of(config), "saes": saes}
    permutations = wandb.Artifact(artifact_name(f"permutations-{run.id}"), type=PERMUTATIONS_TYPE, metadata=metadata)
    for path in files:
        permutations.add_file(str(path), name=path.name)
    run.log_artifact(permutations)


def sae_references(files: list[Path], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, layer, content hash and origin of the SAEs that permutations join, by layer.

    Raises:
        ValueError: a file is no permutation of a record.
    """
    sae = config.get("sae", {})
    described = {key: sae[key] for key in _DESCRIBED if sae.get(key) is not None}
    found: dict[int, str] = {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as stored:
                provenance = json.loads((stored.metadata() or {})["provenance"])
            found |= {int(provenance[f"layer_{side}"]): str(provenance[f"sae_{side}"]) for side in "ab"}
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: no permutation of a record ({error})") from error
    name = str(sae.get("name", "sae"))
    return [{"name": name, "layer": layer, "content_hash": found[layer], **described} for layer in sorted(found)]


def artifact_name(text: str) -> str:
    """A legal artifact name: letters, digits, '.', '_' and '-', at most 128 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:MAX_ARTIFACT_NAME] or "artifact"
