"""What goes wrong with the Hugging Face Hub, in words: what, where, and how to mend it.

Tokens come from the environment (HF_TOKEN) through the hub client alone; none is ever put into a message.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from huggingface_hub import constants
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
from huggingface_hub.utils._validators import validate_repo_id

from sae_match.errors import UserError

_ADDRESS = re.compile(r"https?://[^/]+/(datasets/)?")
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_UNREACHABLE = {"ConnectError", "ConnectTimeout", "ReadTimeout", "TimeoutException", "ProxyError", "PoolTimeout"}
_BROKEN_OFF = {"RemoteProtocolError", "ReadError", "IncompleteRead"}
GATED_DATASET = "is a gated dataset on the Hub"
"""datasets cuts the hub client's error off its own, so that only these words are left."""
_ABSENT = "and the local cache does not hold what is needed"


@dataclass(frozen=True)
class Repository:
    """A repository as a configuration group names it.

    Attributes:
        group: configuration group that names it (sae, model, dataset), for the advice.
        elsewhere: what else could be read where the hub cannot, as advice.

    Raises:
        UserError: `repo_id` is a path, an address, or otherwise no repository's name.
    """

    repo_id: str
    revision: str | None
    group: str
    elsewhere: str

    def __post_init__(self) -> None:
        try:
            if self.repo_id:
                validate_repo_id(self.repo_id)
        except HFValidationError:
            pasted = _ADDRESS.sub("", self.repo_id)
            name = "/".join(pasted.strip("/").split("/")[:2])
            meant = f" Did you mean {name}?" if _NAME.fullmatch(name) and pasted[0] not in "./~" else ""
            raise UserError(
                f"{self.group}.repo_id={self.repo_id} is no name of a hub repository (owner/name).{meant} "
                f"For a local folder, {self.elsewhere}."
            ) from None

    @property
    def page(self) -> str:
        """Where a person finds it, and its licence."""
        return f"https://huggingface.co/{'datasets/' if self.group == 'dataset' else ''}{self.repo_id}"

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.group} {self.repo_id}" + (f" at revision {self.revision}" if self.revision else "")


def explain(error: BaseException, repository: Repository, filename: str | None = None) -> str | None:
    """What is wrong, where, and how to mend it; None where the hub has nothing to do with `error`."""
    chain = list(_chain(error))
    what = repository.label + (f", file {filename}" if filename else "")
    if any(GATED_DATASET in str(link) for link in chain):
        return f"{what}: {_gated(repository)}"
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
    below = _transport(chain, repository)
    return None if below is None else f"{what}: {below}"


def _transport(chain: list[BaseException], repository: Repository) -> str | None:
    """Explains what happens below HTTP: no connection, a connection that breaks, a full or locked disk."""
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    cache, elsewhere = constants.HF_HUB_CACHE, repository.elsewhere
    message = None
    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        message = f"the disk is full ({cache}). Make room, or set HF_HOME to another disk."
    elif "PermissionError" in names:
        message = f"the hub's cache {cache} cannot be written. Set HF_HOME to another directory."
    elif names & _BROKEN_OFF or any("Consistency check failed" in str(link) for link in chain):
        message = (
            "the download broke off or arrived incomplete. Run again: it goes on from what has arrived. If that fails "
            f"every time, {elsewhere}."
        )
    elif names & {"LocalProtocolError", "UnicodeEncodeError"}:
        message = "the request could not be sent. If HF_TOKEN is set, it holds characters that no token has."
    elif names & _UNREACHABLE or any(isinstance(link, LocalEntryNotFoundError) for link in chain):
        message = (
            f"the hub at {constants.ENDPOINT} cannot be reached, {_ABSENT}. Check the network (and HF_ENDPOINT, "
            f"HTTPS_PROXY), or {elsewhere}."
        )
    return message


def _gated(repository: Repository) -> str:
    accept = f"accept its licence at {repository.page}"
    if not os.environ.get("HF_TOKEN"):
        return (
            f"the repository is gated, and HF_TOKEN is not set. Log in to the hub, {accept}, make an access token "
            "there (read permission is enough) and set HF_TOKEN to it in the environment."
        )
    return (
        f"the repository is gated, and the account of HF_TOKEN has no access. With that account, {accept}; a "
        "fine-grained token also needs the permission to read public gated repositories."
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
        f"offline mode is on (HF_HUB_OFFLINE), {_ABSENT} ({constants.HF_HUB_CACHE}). "
        f"Run once with HF_HUB_OFFLINE=0 and a network, or {repository.elsewhere}."
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
            f"the hub at {constants.ENDPOINT} is in trouble ({status}), {_ABSENT}. Try later, or "
            f"{repository.elsewhere}."
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
