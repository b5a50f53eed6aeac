"""Asking the Hugging Face Hub about files without fetching them: are they there, readable, how large, in the cache?

Requests are short (a HEAD or a listing), wait a few seconds at most, and end with the first one that finds no hub.
Nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name

from sae_match.errors import UserError
from sae_match.hub_errors import Repository, explain

TIMEOUT_SECONDS = 5.0


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
        size: bytes, or None where the hub does not say.
        cached: its path in the local cache, or None where it would be downloaded.
    """

    repository: Repository
    filename: str
    size: int | None
    cached: Path | None


class Lookup:
    """Answers questions about the hub's files; remembers when the hub cannot be reached.

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
        error = self._down
        if error is None:
            try:
                return self._ask(repository, filename)
            except Exception as raised:
                error = self._judge(raised, repository, filename)
        cached = cached_path(repository, filename, repository.revision)
        if cached is None:
            raise self._refused(error, repository, None if _whole(error) else filename)
        # The client falls back on its cache in the same way.
        return HubFile(repository, filename, cached.stat().st_size, cached)

    def listing(self, repository: Repository) -> list[HubFile]:
        """All files of a repository, else what the cache holds. Names and sizes are public: no gate is checked.

        Raises:
            HubRefusalError: unknown repository or revision, or no hub and nothing in the cache.
        """
        error = self._down
        if error is None:
            try:
                return self._list(repository)
            except Exception as raised:
                error = self._judge(raised, repository, None)
        cached = _cached_files(repository)
        if not cached:
            raise self._refused(error, repository, None)
        return cached

    def _ask(self, repository: Repository, filename: str) -> HubFile:
        url = hf_hub_url(
            repository.repo_id, filename, revision=repository.revision, repo_type=_kind(repository),
            endpoint=constants.ENDPOINT,
        )  # fmt: skip
        metadata = get_hf_file_metadata(url, timeout=self.timeout, endpoint=constants.ENDPOINT)
        cached = cached_path(repository, filename, metadata.commit_hash) or _blob(repository, metadata.etag)
        return HubFile(repository, filename, metadata.size, cached)

    def _list(self, repository: Repository) -> list[HubFile]:
        info = HfApi(endpoint=constants.ENDPOINT).repo_info(
            repository.repo_id, revision=repository.revision, repo_type=_kind(repository), files_metadata=True,
            timeout=self.timeout,
        )  # fmt: skip
        names = [(sibling.rfilename, sibling.size) for sibling in getattr(info, "siblings", None) or []]
        return [HubFile(repository, name, size, cached_path(repository, name, info.sha)) for name, size in names]

    def _judge(self, error: Exception, repository: Repository, filename: str | None) -> Exception:
        """The error, unless the cache cannot stand in for it; a hub that is down is not asked again."""
        if explain(error, repository, filename) is None:
            raise error
        if isinstance(error, (EntryNotFoundError, RevisionNotFoundError)):
            raise self._refused(error, repository, filename)
        if not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500:
            self._down = error
        return error

    def _refused(self, error: Exception, repository: Repository, filename: str | None) -> HubRefusalError:
        return HubRefusalError(str(explain(error, repository, filename)), _whole(error))


def _whole(error: Exception) -> bool:
    return not isinstance(error, EntryNotFoundError)


def _kind(repository: Repository) -> str:
    return "dataset" if repository.group == "dataset" else "model"


def _folder(repository: Repository) -> Path:
    name = repo_folder_name(repo_id=repository.repo_id, repo_type=_kind(repository))
    return Path(constants.HF_HUB_CACHE) / name


def cached_path(repository: Repository, filename: str, revision: str | None) -> Path | None:
    """A file of a repository in the hub client's cache, or None; nothing is asked or fetched."""
    found = try_to_load_from_cache(
        repository.repo_id, filename, revision=revision, repo_type=_kind(repository), cache_dir=constants.HF_HUB_CACHE
    )
    return Path(found) if isinstance(found, str) else None


def _blob(repository: Repository, etag: str | None) -> Path | None:
    """The same content under another commit: the client links it instead of downloading."""
    path = _folder(repository) / "blobs" / (etag or "absent")
    return path if path.is_file() else None


def _cached_files(repository: Repository) -> list[HubFile]:
    revision = repository.revision or "main"
    reference = _folder(repository) / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    root = _folder(repository) / "snapshots" / commit
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return [HubFile(repository, path.relative_to(root).as_posix(), path.stat().st_size, path) for path in paths]
