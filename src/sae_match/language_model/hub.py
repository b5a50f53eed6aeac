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
from sae_match.language_model.sources import CONFIG, SMALL, WEIGHTS, ModelSource, PlannedModel
from sae_match.options import option

if TYPE_CHECKING:
    from sae_match.store import Store

ELSEWHERE = "use a downloaded copy (model=local model.path=DIR), or evaluation=weights_only, which needs none"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHARD = re.compile(r"-\d+-of-\d+\.")


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
        """The repository's name."""
        return self.repo_id

    @property
    def repository(self) -> Repository:
        """The repository."""
        return Repository(self.repo_id, self.revision, "model", ELSEWHERE)

    def files(self, store: Store) -> Path:
        """The snapshot of one commit, its weights' checksums verified."""
        directory, repository = self.small_files(store), self.repository
        for name in _WEIGHTS:
            wanted = _shards(directory, name)
            if wanted == [name]:  # without an index only the hub, or a look into the cache, says whether it is there
                directory = snapshot(repository, [name])
            if wanted != [name] or (directory / name).is_file():
                return _with_weights(repository, wanted)
        raise UserError(
            f"{repository.label}: it holds neither {' nor '.join(_WEIGHTS)}, so it is no transformers model. "
            f"See {repository.page}/tree/{self.revision or 'main'}."
        )

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
        repository = self.repository
        # The first file that a download asks for: the hub refuses it to whoever has not accepted a gate's terms.
        config = lookup.file(repository, CONFIG)
        files = _needed(lookup.listing(repository))
        if not any(fnmatch(file.filename, kind) for file in files for kind in WEIGHTS):
            page = f"{repository.page}/tree/{repository.revision or 'main'}"
            raise UserError(f"{repository.label}: it holds no weights. See {page}.")
        if config.cached is not None:
            return self._described(files, config.cached.parent)
        # A dry run leaves nothing behind, not even in the hub's cache.
        with tempfile.TemporaryDirectory() as scratch:
            with explained(repository, CONFIG):
                path = hf_hub_download(
                    repository.repo_id, CONFIG, revision=repository.revision, cache_dir=scratch,
                    etag_timeout=lookup.timeout, endpoint=constants.ENDPOINT,
                )  # fmt: skip
            return replace(self._described(files, Path(path).parent), directory=None)

    def _described(self, files: list[HubFile], directory: Path) -> PlannedModel:
        from sae_match.language_model.facts import model_size, read_facts

        where = f"{CONFIG} of {self.repo_id}"
        facts, size = read_facts(self, directory, where), model_size(self, directory, where)
        return PlannedModel(files, facts, size, directory)


def _needed(listing: list[HubFile]) -> list[HubFile]:
    """Of a repository's files those that are downloaded: configuration, tokenizer, and one set of weights."""
    names = {file.filename for file in listing}
    weights: set[str] = set()
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if f"{stem}{suffix}.index.json" in names:
            weights = {n for n in names if n.startswith(f"{stem}-") and n.endswith(suffix) and _SHARD.search(n)}
        elif f"{stem}{suffix}" in names:
            weights = {f"{stem}{suffix}"}
        if weights:
            break
    small = {name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in SMALL)}
    return [file for file in listing if file.filename in weights | small]


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


def _with_weights(repository: Repository, names: list[str]) -> Path:
    directory = snapshot(repository, names)
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"{repository.label}: {len(missing)} of {len(names)} weight files are missing ({missing[0]}), in the "
            "repository or, where the hub cannot be reached, in the local cache"
        )
    for name in names:
        verify(directory / name)
    return directory
