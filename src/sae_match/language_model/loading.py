"""Loading a language model from the directory that its source gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sae_match.errors import UserError
from sae_match.language_model.model import LanguageModel
from sae_match.language_model.sources import ModelSource
from sae_match.store import Store

_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises for missing, gated, unreachable, incomplete or unsupported checkpoints."""


def load_language_model(source: ModelSource, device: str, store: Store) -> LanguageModel:
    """Loads a model and its tokenizer.

    Code that comes with a checkpoint is never run.

    Args:
        source: which model, dtype and attention implementation.
        device: auto | cpu | cuda (auto: cuda where there is one).
        store: a GGUF model is converted into it once.

    Raises:
        UserError: the source is missing, gated, unreachable, incomplete or not a supported causal language model, or
            there is no such device or too little memory on it.
    """
    target = resolve_device(device)
    directory = source.files(store)
    placement = placement_options(source, store)
    with without_progress_bars():
        hf, tokenizer = _load(source, directory, placement)
    try:
        return LanguageModel(hf if placement else hf.to(target), tokenizer, source.name)
    except torch.OutOfMemoryError as error:
        raise UserError(f"model {source.name} does not fit on {target}: {error}\nTry model.dtype=bfloat16") from error


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


def placement_options(source: ModelSource, store: Store) -> dict[str, Any]:
    """What `from_pretrained` needs to spread a model with accelerate; nothing where `device_map` is null."""
    if source.device_map is None:
        return {}
    # accelerate numbers accelerators.
    most = {int(place) if place.isdigit() else place: size for place, size in source.max_memory.items()}
    return {
        "device_map": source.device_map,
        "max_memory": most or None,
        "offload_folder": str(store.scratch("offload")),
    }


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Disables transformers' progress bars inside the block and restores the previous state after it."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def _load(source: ModelSource, directory: Path, placement: dict[str, Any]) -> tuple[Any, Any]:
    """The transformers model (typed loosely: its `to` is wrapped beyond type checkers) and the tokenizer."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, source.dtype),
            attn_implementation=source.attn_implementation,
            output_loading_info=True,
            **placement,
            **options,
        )
        hf, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(directory, **options)
    except _LOAD_ERRORS as error:
        raise UserError(
            f"model {source.name}: cannot load {source.origin} ({directory}).\n{error}\n{source.advice}"
        ) from error
    # transformers fills absent weights with random numbers and only logs it.
    if info["missing_keys"]:
        absent = sorted(info["missing_keys"])
        raise UserError(
            f"model {source.name}: {source.origin} ({directory}) lacks {len(absent)} weights of {type(hf).__name__}, "
            f"such as {absent[0]}; the checkpoint is incomplete or of another architecture"
        )
    return hf, tokenizer
