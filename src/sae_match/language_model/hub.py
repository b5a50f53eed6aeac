"""Language models of the Hugging Face Hub: the small files that say what one is, and then its weights."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from huggingface_hub import constants, hf_hub_download
from pydantic import Field

from sae_match.errors import UserError
from sae_match.hub import HubFile, Lookup, cached_path, explained, snapshot, verify
from sae_match.hub_errors import Repository
from sae_match.language_model.sources import CONFIG, SMALL, ModelSource, PlannedModel
from sae_match.options import option

if TYPE_CHECKING:
    from sae_match.store import Store

ELSEWHERE = "use a downloaded copy (model=local model.path=DIR), or evaluation=weights_only, which needs none"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In this order, one file or several with an index; the first set that is there is read."""


@option
class HubModel(ModelSource):
    """A causal language model of the hub, downloaded once into the hub client's own cache."""

    advice: ClassVar[str] = (
        "Check that model.repo_id names a causal language model that this version of transformers knows."
    )

    repo_id: Annotated[str, Field(min_length=1)]
    """Repository, OWNER/NAME."""
    revision: str | None = None
    """Branch, tag or commit; null = main."""

    @property
    def origin(self) -> str:
        return self.repo_id

    @property
    def repository(self) -> Repository:
        """The repository."""
        return Repository(self.repo_id, self.revision, "model", ELSEWHERE)

    def files(self, store: Store) -> Path:
        """The snapshot of one commit, its weights' checksums verified."""
        directory, repository = self.small_files(store), self.repository
        for name in _WEIGHTS:
            names = _shards(directory, name)
            directory = snapshot(repository, names)
            missing = [shard for shard in names if not (directory / shard).is_file()]
            if missing == [name]:  # one file without an index: only now is it known not to be there
                continue
            if missing:
                raise UserError(
                    f"{repository.label}: {len(missing)} of {len(names)} weight files are missing ({missing[0]}), in "
                    "the repository or, where the hub cannot be reached, in the local cache"
                )
            for shard in names:
                verify(directory / shard)
            return directory
        raise UserError(self._without_weights())

    def small_files(self, store: Store) -> Path:
        """The snapshot without its weights."""
        directory = snapshot(self.repository, SMALL, skip=["*/*"])
        if not (directory / CONFIG).is_file():
            raise UserError(f"{self.repository.label}: it holds no config.json, so it is no transformers model")
        return directory

    def identity(self) -> Any:
        """Repository and commit of the copy in the hub client's cache."""
        config = cached_path(self.repository, CONFIG, self.revision)
        if config is None:
            raise UserError(f"{self.repo_id} is not on this machine")
        return {"repository": self.repo_id, "commit": config.parent.name}

    def plan(self, lookup: Lookup, store: Store) -> PlannedModel:
        """The files that a job would read; facts and size from config.json alone."""
        repository, where = self.repository, f"{CONFIG} of {self.repo_id}"
        # The first file that a download asks for: the hub refuses it to whoever has not accepted a gate's terms.
        config = lookup.file(repository, CONFIG)
        files = self._needed(lookup.listing(repository))
        if config.cached is not None:
            return self.described(config.cached.parent, files, where)
        # A dry run leaves nothing behind, not even in the hub's cache.
        with tempfile.TemporaryDirectory() as scratch:
            with explained(repository, CONFIG):
                path = hf_hub_download(
                    repository.repo_id, CONFIG, revision=repository.revision, cache_dir=scratch,
                    etag_timeout=lookup.timeout, endpoint=constants.ENDPOINT,
                )  # fmt: skip
            return replace(self.described(Path(path).parent, files, where), directory=None)

    def _needed(self, listing: list[HubFile]) -> list[HubFile]:
        """Of the repository's files those that are downloaded: configuration, tokenizer, and one set of weights."""
        names = {file.filename for file in listing}
        for name in _WEIGHTS:
            stem, suffix = name.split(".")
            pattern = rf"{stem}-\d+-of-\d+\.{suffix}" if f"{name}.index.json" in names else re.escape(name)
            weights = {found for found in names if re.fullmatch(pattern, found)}
            if weights:
                break
        else:
            raise UserError(self._without_weights())
        small = {name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in SMALL)}
        return [file for file in listing if file.filename in weights | small]

    def _without_weights(self) -> str:
        return (
            f"{self.repository.label}: it holds no weights, neither {' nor '.join(_WEIGHTS)}, so it is no transformers "
            f"model. See {self.repository.page}/tree/{self.revision or 'main'}."
        )


def _shards(directory: Path, name: str) -> list[str]:
    """Names of the files that hold the weights: those that an index lists, or the one file."""
    index = directory / f"{name}.index.json"
    if not index.is_file():
        return [name]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{index}: not an index of weights ({error}); delete it and run again") from error
    if not names or not all(isinstance(found, str) and re.fullmatch(r"[\w-][\w.-]*", found) for found in names):
        raise UserError(f"{index}: names files outside its own folder; such an index is refused")
    return names
