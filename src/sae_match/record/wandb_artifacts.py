"""Permutations as a W&B artifact, and the SAEs they were made from as its inputs, by reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from .factors import columns_of
from .lineage import SaeReference, sae_references
from .wandb_settings import artifact_name

PERMUTATIONS_TYPE, SAE_TYPE = "permutations", "sae"
REFERENCE_FILE = "sae.json"


def log_permutations(run: wandb.Run, directory: Path, config: Mapping[str, Any]) -> None:
    """Log a folder's permutations as `permutations-<run id>`, made from `sae-<name>-layer-<layer>` artifacts.

    An SAE's artifact holds no weights: one small file with its content hash and where it is from. Equal SAEs are one
    version of one artifact in every run that uses them, which is what W&B's lineage graph joins.

    Raises:
        ValueError: there are no permutations, or a file is none.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ValueError(f"no permutations in {directory}")
    saes = sae_references(directory, config)
    for sae in saes:
        _use(run, _reference(sae))
    metadata = {**columns_of(config), "saes": [sae.as_dict() for sae in saes]}
    artifact = wandb.Artifact(artifact_name(f"permutations-{run.id}"), type=PERMUTATIONS_TYPE, metadata=metadata)
    for path in files:
        artifact.add_file(str(path), name=path.name)
    run.log_artifact(artifact)


def _reference(sae: SaeReference) -> wandb.Artifact:
    name = artifact_name(f"sae-{sae.name}-layer-{sae.layer:02d}")
    artifact = wandb.Artifact(name, type=SAE_TYPE, metadata=sae.as_dict())
    # A file, because W&B tells versions apart by files and not by metadata.
    with artifact.new_file(REFERENCE_FILE) as stream:
        stream.write(json.dumps(sae.as_dict(), sort_keys=True, indent=2))
    return artifact


def _use(run: wandb.Run, artifact: wandb.Artifact) -> None:
    """Record an artifact that may not exist at the server yet as an input of the run."""
    # `use_artifact` refuses to work offline, and online waits for each upload in turn. This is the part of it that does
    # neither: the use is recorded when the artifact is uploaded, by the run itself or later by `wandb sync`.
    run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
