"""Downloading single files from the Hugging Face Hub, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sae_match.errors import UserError


def download(repo_id: str, filename: str, revision: str | None = None) -> Path:
    """Local path of `filename` from `repo_id`, through the hub client's own cache.

    Raises:
        UserError: gated or unknown repository, unknown revision or file, or no network; with the likely mend.
    """
    what = f"{repo_id}/{filename}" + (f" at revision {revision}" if revision else "")
    try:
        return Path(hf_hub_download(repo_id, filename, revision=revision))
    except GatedRepoError as error:
        raise UserError(
            f"{what}: the repository is gated. Accept its licence at https://huggingface.co/{repo_id} "
            "and set HF_TOKEN in the environment."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{what}: no such revision (sae.revision)") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{what}: no such repository, or it is private and HF_TOKEN is not set") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{what}: the hub cannot be reached and the file is not in the local cache. Check the network "
            "(or HF_HUB_OFFLINE), or point sae.root at a local copy in the hub's layout."
        ) from error
    except EntryNotFoundError as error:
        raise UserError(f"{what}: no such file in the repository (layer, sae.width or sae.l0?)") from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{what}: download failed ({error})") from error
