"""The language model that a job loads: its files, access and size, before any weight is downloaded or read."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import constants, hf_hub_download

from sae_match.config.schema import Config, ModelConfig, ModelSource
from sae_match.errors import UserError
from sae_match.experiment.model_check import check_dtype, check_span, check_window
from sae_match.experiment.problems import noting
from sae_match.hub import explained
from sae_match.hub_lookup import HubFile, Lookup
from sae_match.language_model.embedded import GGUF_SHA256, find_gguf
from sae_match.language_model.facts import ModelFacts, read_facts
from sae_match.language_model.files import SMALL, model_repository
from sae_match.language_model.gguf import conversion_key
from sae_match.language_model.size import ModelSize, model_size
from sae_match.store import Store

CONFIG = "config.json"
NO_MODEL_NEEDED = "evaluation=weights_only needs no language model, and so no licence and no token."
_SHARD = re.compile(r"-\d+-of-\d+\.")


@dataclass(frozen=True)
class PlannedModel:
    """A job's language model, as far as it is known without its weights.

    Attributes:
        files: its files on the hub; empty for a model that is on this machine.
        facts, size: None where its configuration cannot be read now.
        directory: local directory with its configuration and tokenizer, where there is one.
        note: what else to know.
    """

    files: list[HubFile]
    facts: ModelFacts | None
    size: ModelSize | None
    directory: Path | None
    note: str = ""


def plan_model(cfg: Config, lookup: Lookup, problems: list[str]) -> PlannedModel:
    """Find the model; whatever is wrong goes into `problems`."""
    with noting(problems):
        planned = _on_hub(cfg, lookup) if cfg.model.source is ModelSource.hub else _on_disk(cfg)
        if planned.facts is not None:
            with noting(problems):
                check_span(cfg, planned.facts)
            with noting(problems):
                check_window(cfg, planned.facts)
            with noting(problems):
                check_dtype(cfg, planned.facts)
        return planned
    return PlannedModel([], None, None, None)


def _on_disk(cfg: Config) -> PlannedModel:
    if cfg.model.source is ModelSource.embedded:
        found = Store(cfg.paths.cache_dir).find_folder("models", conversion_key(GGUF_SHA256))
        if found is None:
            gguf = find_gguf()
            return PlannedModel([], None, None, None, f"{gguf.name} is converted on first use (half a minute)")
        directory = found
    else:
        directory = Path(cfg.model.path or "").expanduser()
        if directory.suffix == ".gguf" and directory.is_file():
            return PlannedModel([], None, None, None, f"{directory.name} is converted on first use; size not known yet")
        if not (directory / CONFIG).is_file():
            raise UserError(f"model.path={cfg.model.path}: no config.json there; name a transformers model directory")
    return PlannedModel([], read_facts(cfg.model, directory), model_size(cfg.model, directory), directory)


def _on_hub(cfg: Config, lookup: Lookup) -> PlannedModel:
    repository = model_repository(cfg.model)
    try:
        # The first file that a download asks for: the hub refuses it to whoever has not accepted a gate's terms.
        config = lookup.file(repository, CONFIG)
    except UserError as error:
        raise UserError(f"{error} {NO_MODEL_NEEDED}") from None
    files = needed(lookup.listing(repository))
    if not any(_is_weights(file.filename) for file in files):
        page = f"{repository.page}/tree/{repository.revision or 'main'}"
        raise UserError(f"{repository.label}: it holds no weights. See {page}.")
    if config.cached is not None:
        return _described(cfg.model, files, config.cached.parent, kept=True)
    # A dry run leaves nothing behind, not even in the hub's cache.
    with tempfile.TemporaryDirectory() as scratch:
        with explained(repository, CONFIG):
            path = hf_hub_download(
                repository.repo_id, CONFIG, revision=repository.revision, cache_dir=scratch,
                etag_timeout=lookup.timeout, endpoint=constants.ENDPOINT,
            )  # fmt: skip
        return _described(cfg.model, files, Path(path).parent, kept=False)


def _described(cfg: ModelConfig, files: list[HubFile], directory: Path, kept: bool) -> PlannedModel:
    where = f"{CONFIG} of {cfg.repo_id}"
    facts, size = read_facts(cfg, directory, where), model_size(cfg, directory, where)
    return PlannedModel(files, facts, size, directory if kept else None)


def needed(listing: list[HubFile]) -> list[HubFile]:
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


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))
