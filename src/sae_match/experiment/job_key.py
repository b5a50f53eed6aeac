"""What a job is: the scientific part of its configuration, and the content of everything it reads."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sae_match.config.rules import check_config
from sae_match.config.schema import Config, EvaluationLevel, ModelConfig, ModelSource
from sae_match.content import content_key
from sae_match.errors import UserError
from sae_match.files import known_sha256
from sae_match.hub_errors import Repository
from sae_match.hub_lookup import cached_path
from sae_match.judging.neuronpedia import explanation_files
from sae_match.language_model.embedded import GGUF_SHA256
from sae_match.language_model.files import SMALL, model_repository
from sae_match.record.science import LOCATIONS, science_of
from sae_match.saes import SaeSource
from sae_match.saes.hub import ELSEWHERE
from sae_match.saes.locating import fill, local_root
from sae_match.text.sources import open_source

KEY_VERSION = 1
"""To be raised when what a finished record says can no longer be trusted. Versions of libraries and the code's commit
are recorded beside the results and do not enter: a new one is a reason for rerun=all, which the user decides."""
_MODEL_FILES = (*SMALL, "*.safetensors", "*.bin")


def job_key(cfg: Config) -> str | None:
    """Content key of a job, 64 hexadecimal digits: equal for jobs that must find the same.

    None where it cannot be known, because the configuration or an input is wrong, or an input is not on this machine
    yet; such a job has to run. Nothing is downloaded.
    """
    try:
        check_config(cfg)
        inputs = input_hashes(cfg)
    except (UserError, OSError):
        return None
    return content_key({"version": KEY_VERSION, "science": science_of(cfg.config, LOCATIONS), "inputs": inputs})


def input_hashes(cfg: Config) -> dict[str, Any]:
    """What identifies each input: a local file's sha256, a hub file's blob, a hub model's commit, a text's identity.

    A hub text is identified by its repository and revision: its tokens, once made, stay what they were.

    Raises:
        UserError: an input is wrong, or not on this machine.
        OSError: it cannot be read.
    """
    layers = list(range(cfg.layers.first, cfg.layers.last + 1))
    inputs: dict[str, Any] = {"saes": {str(layer): _sae(cfg, layer, layers) for layer in layers}}
    if cfg.evaluation.level is EvaluationLevel.full:
        inputs["model"] = _model(cfg.model)
        source = open_source(cfg.dataset)
        inputs["text"] = {"source": source.name, **source.identity}
    if cfg.judging.neuronpedia is not None:
        folder = cfg.judging.neuronpedia
        inputs["explanations"] = [[_content(path) for path in explanation_files(folder, layer)] for layer in layers]
    return inputs


def _sae(cfg: Config, layer: int, layers: list[int]) -> list[str | None]:
    """Content of a layer's files, then of its second seed where there is one."""
    names = SaeSource(cfg.sae, tuple(layers)).names(layer)
    if cfg.sae.root is None:
        repository = Repository(cfg.sae.repo_id or "", cfg.sae.revision, "sae", ELSEWHERE)
        return [_content(cached_path(repository, name, cfg.sae.revision)) for name in names]
    root = local_root(cfg.sae.root)
    contents: list[str | None] = [_content(root / name) for name in names]
    if cfg.sae.ceiling_filename is not None:
        second = root / fill(cfg.sae.ceiling_filename, layer, "sae.ceiling_filename")
        contents.append(_content(second) if second.is_file() else None)
    return contents


def _model(cfg: ModelConfig) -> Any:
    if cfg.source is ModelSource.embedded:
        return GGUF_SHA256
    if cfg.source is ModelSource.hub:
        config = cached_path(model_repository(cfg), "config.json", cfg.revision)
        if config is None:
            raise UserError(f"{cfg.repo_id} is not on this machine")
        return {"repository": cfg.repo_id, "commit": config.parent.name}
    path = Path(cfg.path or "").expanduser()
    if path.is_file():
        return _content(path)
    files = [file for file in sorted(path.iterdir()) if any(fnmatch(file.name, kind) for kind in _MODEL_FILES)]
    return {file.name: _content(file) for file in files}


def _content(path: Path | None) -> str:
    if path is None:
        raise UserError("a file is not on this machine")
    real = path.resolve()
    if real.parent.name == "blobs":  # the hub's cache names files by their content
        return real.name
    return known_sha256(real)
