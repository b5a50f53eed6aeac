"""Downloading single files of SAE repositories from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from sae_match.hub import download as download_from
from sae_match.hub_errors import Repository

ELSEWHERE = "point sae.root at a local copy in the hub's layout"


def download(repo_id: str, filename: str, revision: str | None = None) -> Path:
    """Local path of `filename` from `repo_id`, through the hub client's own cache; its checksum is checked.

    Raises:
        UserError: gated or unknown repository, unknown revision or file, no network, or a damaged file; with the mend.
    """
    return download_from(Repository(repo_id, revision, "sae", ELSEWHERE), filename)
