"""What every reader of the Hugging Face Hub shares: errors that say what to do, and downloads whose content is checked.

Tokens come from the environment (HF_TOKEN) through the hub client alone; none is ever put into a message.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sae_match.errors import UserError

_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_UNREACHABLE = ("ConnectError", "ConnectTimeout", "ReadTimeout", "TimeoutException", "ProxyError", "PoolTimeout")
_BROKEN_OFF = ("RemoteProtocolError", "ReadError", "IncompleteRead")


@dataclass(frozen=True)
class Repository:
    """A repository as a configuration group names it.

    Attributes:
        group: configuration group that names it (sae, model, dataset), for the advice.
        elsewhere: what else could be read where the hub cannot, as advice.
    """

    repo_id: str
    revision: str | None
    group: str
    elsewhere: str

    @property
    def page(self) -> str:
        """Where a person finds it, and its licence."""
        return f"https://huggingface.co/{'datasets/' if self.group == 'dataset' else ''}{self.repo_id}"

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.group} {self.repo_id}" + (f" at revision {self.revision}" if self.revision else "")


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
    stat = blob.stat()
    found = _sha256(blob, stat.st_size, stat.st_mtime_ns)
    if found != blob.name:
        raise UserError(
            f"{path}: the content is not what the hub announced (sha256 {found[:16]}..., expected {blob.name[:16]}...): "
            f"the download or the disk damaged it. Delete {blob} and run again; the file is then fetched anew."
        )


@lru_cache(maxsize=4096)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def explain(error: BaseException, repository: Repository, filename: str | None = None) -> str | None:
    """What is wrong, where, and how to mend it; None where the hub has nothing to do with `error`."""
    chain = list(_chain(error))
    what = repository.label + (f", file {filename}" if filename else "")
    for kind, explanation in (
        (GatedRepoError, _gated), (RevisionNotFoundError, _revision), (RepositoryNotFoundError, _repository),
    ):  # fmt: skip
        if any(isinstance(link, kind) for link in chain):
            return f"{what}: {explanation(repository)}"
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain) or (
        constants.is_offline_mode()
        and any(isinstance(link, (LocalEntryNotFoundError, ConnectionError)) for link in chain)
    ):
        return f"{what}: {_offline(repository)}"
    responses = [link.response for link in chain if isinstance(link, HfHubHTTPError)]
    missing = [link for link in chain if isinstance(link, EntryNotFoundError)]
    if missing and not any(isinstance(link, LocalEntryNotFoundError) for link in missing):
        return f"{what}: no such file in the repository. See {repository.page}/tree/{repository.revision or 'main'}."
    if responses:
        return f"{what}: {_status(responses[0].status_code, repository)}"
    return _transport(chain, what, repository)


def _transport(chain: list[BaseException], what: str, repository: Repository) -> str | None:
    """Explains what happens below HTTP: no connection, a connection that breaks, a full disk."""
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        return f"{what}: the disk is full ({constants.HF_HUB_CACHE}). Make room, or set HF_HOME to another disk."
    if any(isinstance(link, PermissionError) for link in chain):
        return f"{what}: the hub's cache {constants.HF_HUB_CACHE} cannot be written. Set HF_HOME to another directory."
    if any(isinstance(link, HFValidationError) for link in chain):
        return f"{what}: not a repository's name. {repository.group}.repo_id has the form owner/name."
    if names & set(_BROKEN_OFF) or any("Consistency check failed" in str(link) for link in chain):
        return (
            f"{what}: the download broke off or arrived incomplete. Run again: it goes on from what has arrived. "
            f"If that fails every time, {repository.elsewhere}."
        )
    if "LocalProtocolError" in names or any(isinstance(link, UnicodeEncodeError) for link in chain):
        return f"{what}: the request could not be sent. If HF_TOKEN is set, it holds characters that no token has."
    if names & set(_UNREACHABLE) or any(isinstance(link, LocalEntryNotFoundError) for link in chain):
        return (
            f"{what}: the hub at {constants.ENDPOINT} cannot be reached, and the local cache does not hold what is "
            f"needed. Check the network (and HF_ENDPOINT, HTTPS_PROXY), or {repository.elsewhere}."
        )
    return None


def _gated(repository: Repository) -> str:
    accept = f"accept its licence at {repository.page}"
    if not os.environ.get("HF_TOKEN"):
        return (
            f"the repository is gated, and HF_TOKEN is not set. Log in to the hub, {accept}, make an access token there "
            "(read permission is enough) and set HF_TOKEN to it in the environment."
        )
    return (
        f"the repository is gated, and the account of HF_TOKEN has no access. With that account, {accept}; a fine-grained "
        "token also needs the permission to read public gated repositories."
    )


def _revision(repository: Repository) -> str:
    key = f"{repository.group}.revision"
    return (
        f"the repository has no such revision. Set {key} to a branch, tag or commit of {repository.page}, or to null."
    )


def _repository(repository: Repository) -> str:
    return (
        f"no such repository, or it is private. Check {repository.group}.repo_id; a private one needs HF_TOKEN in the "
        "environment, of an account that may read it."
    )


def _offline(repository: Repository) -> str:
    return (
        f"offline mode is on (HF_HUB_OFFLINE), and the local cache ({constants.HF_HUB_CACHE}) does not hold what is "
        f"needed. Run once with HF_HUB_OFFLINE=0 and a network, or {repository.elsewhere}."
    )


def _status(status: int, repository: Repository) -> str:
    if status == 401 and not os.environ.get("HF_TOKEN"):
        return _repository(repository)
    if status == 401:
        return "the hub does not accept HF_TOKEN (401): it is mistyped, expired or revoked. Set a valid one, or none."
    if status == 403:
        return (
            f"the hub refuses access (403). The account of HF_TOKEN may not read {repository.page}, or the token lacks "
            "the permission."
        )
    if status == 429:
        return "too many requests (429). Wait some minutes; with HF_TOKEN set the limit is higher."
    if status >= 500:
        return (
            f"the hub at {constants.ENDPOINT} is in trouble ({status}), and the local cache does not hold what is needed. "
            f"Try later, or {repository.elsewhere}."
        )
    check = f"Check {repository.group}.repo_id and HF_ENDPOINT"
    return f"the hub at {constants.ENDPOINT} answers with status {status}. {check}."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it came from, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def holds_token(error: BaseException) -> bool:
    """Whether the message of an exception, or of one behind it, repeats the token of the environment."""
    token = (os.environ.get("HF_TOKEN") or "").strip()
    secrets = {part for part in (token, *token.split()) if len(part) >= 6}
    return any(secret in str(link) or secret in repr(link) for link in _chain(error) for secret in secrets)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    return constants.is_offline_mode()
