"""A hub model's files on this machine: the small ones that say what it is, and then its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sae_match.config.schema import ModelConfig, ModelSource
from sae_match.errors import UserError
from sae_match.hub import snapshot, verify
from sae_match.hub_errors import Repository
from sae_match.language_model.embedded import embedded_model_dir
from sae_match.language_model.gguf import converted_gguf
from sae_match.store import Store

SMALL = ["*.json", "*.model", "*.txt", "*.jinja"]
"""Configuration and tokenizer files."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def model_files(cfg: ModelConfig, store: Store) -> Path:
    """Directory with a model's configuration, tokenizer and weights, downloaded or converted where needed.

    Raises:
        UserError: the source is missing, gated, unreachable, incomplete or damaged.
    """
    if cfg.source == ModelSource.embedded:
        return embedded_model_dir(store)
    if cfg.source == ModelSource.local:
        return _local(cfg, store)
    directory = small_files(cfg, store)
    repository = model_repository(cfg)
    for name in _WEIGHTS:
        wanted = _shards(directory, name)
        if wanted == [name]:  # without an index only the hub, or a look into the cache, says whether it is there
            directory = snapshot(repository, [name])
        if wanted != [name] or (directory / name).is_file():
            return _with_weights(repository, wanted)
    raise UserError(
        f"{repository.label}: it holds neither {' nor '.join(_WEIGHTS)}, so it is no transformers model. "
        f"See {repository.page}/tree/{cfg.revision or 'main'}."
    )


def small_files(cfg: ModelConfig, store: Store) -> Path:
    """Directory with at least a model's configuration and tokenizer; of a hub model no weights are downloaded.

    Raises:
        UserError: the source is missing, gated, unreachable or no model.
    """
    if cfg.source != ModelSource.hub:
        return model_files(cfg, store)
    repository = model_repository(cfg)
    directory = snapshot(repository, SMALL, skip=["*/*"])
    if not (directory / "config.json").is_file():
        raise UserError(f"{repository.label}: it holds no config.json, so it is no transformers model")
    return directory


def model_repository(cfg: ModelConfig) -> Repository:
    """The hub repository that a configuration names.

    Raises:
        UserError: it names none.
    """
    if not cfg.repo_id:
        raise UserError("model.source=hub needs model.repo_id, such as google/gemma-2-2b")
    elsewhere = (
        "use a downloaded copy (model.source=local model.path=DIR), or evaluation=weights_only, which needs none"
    )
    return Repository(cfg.repo_id, cfg.revision, "model", elsewhere)


def _local(cfg: ModelConfig, store: Store) -> Path:
    if not cfg.path:
        raise UserError(
            "model.source=local needs model.path, a directory with config.json and weights, or a .gguf file"
        )
    path = Path(cfg.path).expanduser()
    if path.suffix == ".gguf":
        return converted_gguf(path, store)
    if not (path / "config.json").is_file():
        raise UserError(f"model.path={cfg.path}: no config.json there; name a transformers model directory")
    return path


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
