"""Downloads from the Hugging Face Hub for every package: through the client's own cache, their content checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download

from sae_match.errors import UserError
from sae_match.files import known_sha256
from sae_match.hub_errors import Repository, explain, holds_token

_SHA256 = re.compile(r"^[0-9a-f]{64}$")


def download(repository: Repository, filename: str) -> Path:
    """Local path of one file, through the hub client's own cache; its checksum is checked.

    Raises:
        UserError: whatever kept the file from arriving whole, with the likely mend.
    """
    with explained(repository, filename):
        path = Path(hf_hub_download(repository.repo_id, filename, revision=repository.revision))
    verify(path)
    return path


def snapshot(repository: Repository, patterns: list[str], skip: list[str] | None = None) -> Path:
    """Local directory with those files of one commit whose names match `patterns`; checksums are not checked here.

    Raises:
        UserError: whatever kept a file from arriving whole, with the likely mend.
    """
    with explained(repository):
        return Path(
            snapshot_download(
                repository.repo_id, revision=repository.revision, allow_patterns=patterns, ignore_patterns=skip
            )
        )


def verify(path: Path) -> None:
    """Check a large file of the hub's cache against the sha256 that the hub announced, which is its blob's name.

    The client itself compares sizes only. Small files carry no sha256 and pass.

    Raises:
        UserError: the content is another.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs" or not _SHA256.match(blob.name):
        return
    found = known_sha256(blob)
    if found != blob.name:
        raise UserError(
            f"{path}: the content is not what the hub announced (sha256 {found[:16]}..., hub {blob.name[:16]}...), "
            f"so it was damaged on the way or on disk. Delete {blob} and run again; it is then fetched anew."
        )


def content_hash(path: Path) -> str:
    """What identifies a file's content: the name of its blob in the hub's cache, else its sha256, read once in a sweep.

    Raises:
        OSError: it cannot be read.
    """
    real = path.resolve()
    if real.parent.name == "blobs":  # the hub's cache names files by their content
        return real.name
    return known_sha256(real)


@contextmanager
def explained(repository: Repository, filename: str | None = None) -> Iterator[None]:
    """Turns what the hub client, transformers or datasets raise about the hub into one `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = explain(error, repository, filename)
        if message is None:
            raise
        # A traceback repeats the messages of its causes, and one of those may hold the token.
        raise UserError(message) from (None if holds_token(error) else error)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    return constants.is_offline_mode()
