"""What goes wrong with the Hugging Face Hub: what, where, and how to mend it.

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
_GATED_DATASET = "is a gated dataset on the Hub"
"""datasets cuts the hub client's error off its own, so that only these words are left."""
_UNKNOWN = (
    "no such repository, or it is private. Check {group}.repo_id; a private one needs HF_TOKEN in the environment, of "
    "an account that may read it."
)
_EXPLANATIONS = {
    "gated, no token": "the repository is gated, and HF_TOKEN is not set. Log in to the hub, accept its license at "
    "{page}, make an access token there (read permission is enough) and set HF_TOKEN to it in the environment.",
    "gated": "the repository is gated, and the account of HF_TOKEN has no access. With that account, accept its "
    "license at {page}; a fine-grained token also needs the permission to read public gated repositories.",
    "revision": "the repository has no such revision. Set {group}.revision to a branch, tag or commit of {page}, or to "
    "null.",
    "repository": _UNKNOWN,
    "offline": "offline mode is on (HF_HUB_OFFLINE), {absent}. Run once with HF_HUB_OFFLINE=0 and a network, or "
    "{elsewhere}.",
    "file": "no such file in the repository. See {page}/tree/{revision}.",
    "401, no token": _UNKNOWN,
    "401": "the hub does not accept HF_TOKEN (401): it is mistyped, expired or revoked. Set a valid one, or none.",
    "403": "the hub refuses access (403). The account of HF_TOKEN may not read {page}, or the token lacks the "
    "permission.",
    "429": "too many requests (429). Wait some minutes; with HF_TOKEN set the limit is higher.",
    "5xx": "{hub} is in trouble ({status}), {absent}. Try later, or {elsewhere}.",
    "status": "{hub} answers with status {status}. Check {group}.repo_id and HF_ENDPOINT.",
    "disk": "the disk is full ({cache}). Make room, or set HF_HOME to another disk.",
    "permission": "the hub's cache {cache} cannot be written. Set HF_HOME to another directory.",
    "broken off": "the download broke off or arrived incomplete. Run again: it goes on from what has arrived. If that "
    "fails every time, {elsewhere}.",
    "request": "the request could not be sent. If HF_TOKEN is set, it holds characters that no token has.",
    "unreachable": "{hub} cannot be reached, {absent}. Check the network (and HF_ENDPOINT, HTTPS_PROXY), or "
    "{elsewhere}.",
}


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
    def kind(self) -> str:
        """The hub's type of repository."""
        return "dataset" if self.group == "dataset" else "model"

    @property
    def page(self) -> str:
        """Where a person finds it, and its license."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.repo_id}"

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.group} {self.repo_id}" + (f" at revision {self.revision}" if self.revision else "")


def explain(error: BaseException, repository: Repository, filename: str | None = None) -> str | None:
    """What is wrong, where, and how to mend it; None where the hub has nothing to do with `error`."""
    chain, cache = list(_chain(error)), constants.HF_HUB_CACHE
    status = next((link.response.status_code for link in chain if isinstance(link, HfHubHTTPError)), None)
    kind = _kind(chain, status)
    if kind is None:
        return None
    if kind in ("gated", "401") and not os.environ.get("HF_TOKEN"):
        kind += ", no token"
    where = repository.label + (f", file {filename}" if filename else "")
    reason = _EXPLANATIONS[kind].format(
        group=repository.group, page=repository.page, elsewhere=repository.elsewhere, cache=cache, status=status,
        revision=repository.revision or "main", hub=f"the hub at {constants.ENDPOINT}",
        absent=f"and the local cache ({cache}) does not hold what is needed",
    )  # fmt: skip
    return f"{where}: {reason}"


def _kind(chain: list[BaseException], status: int | None) -> str | None:
    """The first of `_EXPLANATIONS` that applies. Other libraries wrap errors of the hub client and of its transport."""

    def holds(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    names = {kind.__name__ for link in chain for kind in type(link).__mro__}  # the client's transport is its own matter
    texts = "\n".join(map(str, chain))
    local = holds(LocalEntryNotFoundError)
    offline = constants.is_offline_mode() and (local or holds(ConnectionError))
    number = "5xx" if status is not None and status >= 500 else str(status)
    kinds = (
        ("gated", holds(GatedRepoError) or _GATED_DATASET in texts),
        ("revision", holds(RevisionNotFoundError)),
        ("repository", holds(RepositoryNotFoundError)),
        ("offline", holds(OfflineModeIsEnabled) or offline),
        ("file", holds(EntryNotFoundError) and not local),
        (number if number in _EXPLANATIONS else "status", status is not None),
        ("disk", any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain)),
        ("permission", "PermissionError" in names),
        ("broken off", bool(names & _BROKEN_OFF) or "Consistency check failed" in texts),
        ("request", bool(names & {"LocalProtocolError", "UnicodeEncodeError"})),
        ("unreachable", bool(names & _UNREACHABLE) or local),
    )
    return next((kind for kind, applies in kinds if applies), None)


def holds_token(error: BaseException) -> bool:
    """Whether the message of an exception, or of one behind it, repeats the token of the environment."""
    token = (os.environ.get("HF_TOKEN") or "").strip()
    secrets = {part for part in (token, *token.split()) if len(part) >= 6}
    return any(secret in str(link) or secret in repr(link) for link in _chain(error) for secret in secrets)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it came from, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
