"""The Hugging Face Hub for every package: files fetched through the client's own cache, their content checked, and
questions about files that are not fetched."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name

from sae_match.errors import UserError
from sae_match.files import known_sha256
from sae_match.hub_errors import Repository, explain, holds_token

TIMEOUT_SECONDS = 5.0
"""How long a question waits for an answer."""
_SHA256 = re.compile(r"^[0-9a-f]{64}$")

T = TypeVar("T")


# -- downloads -------------------------------------------------------------------------------------------


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
    """What identifies a file's content: the name of its blob in the hub's cache, else its sha256, read once a process.

    Raises:
        OSError: it cannot be read.
    """
    real = Path(os.path.realpath(path))
    return real.name if real.parent.name == "blobs" else known_sha256(real)


def cached_path(repository: Repository, filename: str, revision: str | None) -> Path | None:
    """A file of a repository in the hub client's cache, or None; nothing is asked or fetched."""
    found = try_to_load_from_cache(
        repository.repo_id, filename, revision=revision, repo_type=repository.kind, cache_dir=constants.HF_HUB_CACHE
    )
    return Path(found) if isinstance(found, str) else None


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


# -- questions -------------------------------------------------------------------------------------------


class HubRefusalError(UserError):
    """The hub has no answer that a download could use.

    Attributes:
        whole: whether that holds for every file of the repository that is not in the cache.
    """

    def __init__(self, message: str, whole: bool) -> None:
        super().__init__(message)
        self.whole = whole


@dataclass(frozen=True)
class HubFile:
    """A file on the hub.

    Attributes:
        size: bytes, or None where the hub does not state them.
        cached: its path in the local cache, or None where it would be downloaded.
    """

    repository: Repository
    filename: str
    size: int | None
    cached: Path | None


class Lookup:
    """Answers questions about the hub's files without fetching them: are they there, readable, how large, cached?

    Requests are short (a HEAD or a listing) and write nothing; the client's own dry run waits a minute for a hub that
    is down, and leaves notes in the cache. A hub that cannot be reached is not asked again.

    Args:
        timeout: seconds to wait for an answer.
    """

    def __init__(self, timeout: float = TIMEOUT_SECONDS) -> None:
        self.timeout = timeout
        self._down: Exception | None = None

    def file(self, repository: Repository, filename: str) -> HubFile:
        """One file, its access checked by the request that a download begins with.

        Raises:
            HubRefusalError: gated or unknown repository, unknown revision or file, or no hub and no cached copy.
        """

        def ask() -> HubFile:
            url = hf_hub_url(
                repository.repo_id, filename, revision=repository.revision, repo_type=repository.kind,
                endpoint=constants.ENDPOINT,
            )  # fmt: skip
            found = get_hf_file_metadata(url, timeout=self.timeout, endpoint=constants.ENDPOINT)
            cached = cached_path(repository, filename, found.commit_hash)
            # The same content under another commit: the client links it instead of downloading.
            blob = _folder(repository) / "blobs" / (found.etag or "absent")
            return HubFile(repository, filename, found.size, cached or (blob if blob.is_file() else None))

        def in_cache() -> HubFile | None:
            path = cached_path(repository, filename, repository.revision)
            return None if path is None else HubFile(repository, filename, path.stat().st_size, path)

        return self._answer(repository, filename, ask, in_cache)

    def listing(self, repository: Repository) -> list[HubFile]:
        """All files of a repository, else what the cache holds. Names and sizes are public: no gate is checked.

        Raises:
            HubRefusalError: unknown repository or revision, or no hub and nothing in the cache.
        """

        def ask() -> list[HubFile]:
            info = HfApi(endpoint=constants.ENDPOINT).repo_info(
                repository.repo_id, revision=repository.revision, repo_type=repository.kind, files_metadata=True,
                timeout=self.timeout,
            )  # fmt: skip
            names = [(sibling.rfilename, sibling.size) for sibling in getattr(info, "siblings", None) or []]
            return [HubFile(repository, name, size, cached_path(repository, name, info.sha)) for name, size in names]

        return self._answer(repository, None, ask, lambda: _cached_files(repository))

    def unreachable(self, repository: Repository) -> str | None:
        """Why the hub was not asked, where answers come from the cache alone; None where it answers."""
        return None if self._down is None else explain(self._down, repository, None)

    def _answer(
        self, repository: Repository, filename: str | None, ask: Callable[[], T], in_cache: Callable[[], T | None]
    ) -> T:
        """The hub's answer, or the cache's where the client would fall back on it in the same way."""
        error, absent = self._down, False
        if error is None:
            try:
                return ask()
            except Exception as raised:
                if explain(raised, repository, filename) is None:
                    raise
                error, absent = raised, isinstance(raised, (EntryNotFoundError, RevisionNotFoundError))
                if not isinstance(raised, HfHubHTTPError) or raised.response.status_code >= 500:
                    self._down = raised
        found = None if absent else in_cache()
        if found:
            return found
        whole = not isinstance(error, EntryNotFoundError)
        # Without a file's name the same answer of every file is the same text.
        raise HubRefusalError(str(explain(error, repository, None if whole else filename)), whole)


def _folder(repository: Repository) -> Path:
    name = repo_folder_name(repo_id=repository.repo_id, repo_type=repository.kind)
    return Path(constants.HF_HUB_CACHE) / name


def _cached_files(repository: Repository) -> list[HubFile]:
    revision = repository.revision or "main"
    reference = _folder(repository) / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    root = _folder(repository) / "snapshots" / commit
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return [HubFile(repository, path.relative_to(root).as_posix(), path.stat().st_size, path) for path in paths]
