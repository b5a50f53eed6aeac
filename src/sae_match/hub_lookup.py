"""Asking the Hugging Face Hub about files without fetching them: is it there, may I read it, how large is it, do I have it.

Requests are short (a HEAD or a listing), wait a few seconds at most, and stop after the first one that finds no hub.
Nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name

from sae_match import hub
from sae_match.errors import UserError

TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class HubFile:
    """A file on the hub.

    Attributes:
        size: bytes, or None where the hub does not say.
        cached: its path in the local cache, or None where it would be downloaded.
    """

    repository: hub.Repository
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
        self.asked: list[HubFile] = []
        """Every file that was found, in order."""
        self._unreachable: str | None = None

    def file(self, repository: hub.Repository, filename: str) -> HubFile:
        """One file, its access checked by the request that a download begins with.

        Raises:
            UserError: gated or unknown repository, unknown revision or file, or no hub and no cached copy.
        """
        found = self._file(repository, filename)
        self.asked.append(found)
        return found

    def listing(self, repository: hub.Repository) -> list[HubFile]:
        """All files of a repository (its gate is not checked: names and sizes are public), else what the cache holds.

        Raises:
            UserError: unknown repository or revision, or no hub and nothing in the cache.
        """
        if self._unreachable is None:
            try:
                return self._list(repository)
            except Exception as error:
                message = self._note(error, repository)
                if _decided(error):
                    raise UserError(message) from None
        cached = _cached_files(repository)
        if not cached:
            raise UserError(self._message(repository))
        return cached

    def _file(self, repository: hub.Repository, filename: str) -> HubFile:
        message = self._unreachable
        if message is None:
            url = hf_hub_url(
                repository.repo_id, filename, revision=repository.revision, repo_type=_kind(repository),
                endpoint=constants.ENDPOINT,
            )  # fmt: skip
            try:
                metadata = get_hf_file_metadata(url, timeout=self.timeout, endpoint=constants.ENDPOINT)
                cached = _cached(repository, filename, metadata.commit_hash) or _blob(repository, metadata.etag)
                return HubFile(repository, filename, metadata.size, cached)
            except Exception as error:
                message = self._note(error, repository, filename)
                if _decided(error):
                    raise UserError(message) from None
        cached = _cached(repository, filename, repository.revision)
        if cached is None:
            raise UserError(message if self._unreachable is None else self._message(repository, filename))
        return HubFile(repository, filename, cached.stat().st_size, cached)

    def _list(self, repository: hub.Repository) -> list[HubFile]:
        ask = HfApi(endpoint=constants.ENDPOINT).repo_info
        info = ask(
            repository.repo_id, revision=repository.revision, repo_type=_kind(repository), files_metadata=True,
            timeout=self.timeout,
        )  # fmt: skip
        names = [(sibling.rfilename, sibling.size) for sibling in info.siblings or []]
        return [HubFile(repository, name, size, _cached(repository, name, info.sha)) for name, size in names]

    def _note(self, error: Exception, repository: hub.Repository, filename: str | None = None) -> str:
        """What the error means; where it is the network's or the hub's, no further request is made."""
        message = hub.explain(error, repository, filename)
        if message is None:
            raise error
        if not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500:
            # The reason, without what was asked for when it showed.
            self._unreachable = message.split(": ", 1)[1]
        return message

    def _message(self, repository: hub.Repository, filename: str | None = None) -> str:
        return f"{repository.label}{f', file {filename}' if filename else ''}: {self._unreachable}"


def _decided(error: Exception) -> bool:
    """Whether the client would refuse too although a copy is in the cache."""
    missing = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
    return missing or isinstance(error, RevisionNotFoundError)


def _kind(repository: hub.Repository) -> str:
    return "dataset" if repository.group == "dataset" else "model"


def _cached(repository: hub.Repository, filename: str, revision: str | None) -> Path | None:
    found = try_to_load_from_cache(
        repository.repo_id, filename, revision=revision, repo_type=_kind(repository), cache_dir=constants.HF_HUB_CACHE
    )
    return Path(found) if isinstance(found, str) else None


def _folder(repository: hub.Repository) -> Path:
    name = repo_folder_name(repo_id=repository.repo_id, repo_type=_kind(repository))
    return Path(constants.HF_HUB_CACHE) / name


def _blob(repository: hub.Repository, etag: str | None) -> Path | None:
    """The content under another commit's name: the client links it instead of downloading."""
    path = _folder(repository) / "blobs" / (etag or "absent")
    return path if path.is_file() else None


def _cached_files(repository: hub.Repository) -> list[HubFile]:
    revision = repository.revision or "main"
    reference = _folder(repository) / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    root = _folder(repository) / "snapshots" / commit
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return [HubFile(repository, path.relative_to(root).as_posix(), path.stat().st_size, path) for path in paths]
