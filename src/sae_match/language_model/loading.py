"""A language model from the directory that its source gives: its shape and size from config.json, or all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sae_match.errors import UserError
from sae_match.language_model.forward_pass import find_blocks
from sae_match.language_model.model import LanguageModel
from sae_match.language_model.sources import ModelSource
from sae_match.store import Store

_CONFIG_ERRORS = (OSError, ValueError, KeyError, AttributeError, TypeError, ImportError, RuntimeError)
_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises for missing, gated, unreachable, incomplete or unsupported checkpoints."""
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class ModelFacts:
    """The shape of a language model.

    Attributes:
        architecture: transformers class, such as Gemma2ForCausalLM.
        n_layers: number of blocks.
        d_model: width of the residual stream.
        context: longest window in tokens, or None where positions have no limit.
        vocabulary: number of token ids.
    """

    architecture: str
    n_layers: int
    d_model: int
    context: int | None
    vocabulary: int


@dataclass(frozen=True)
class ModelSize:
    """What of a language model decides memory and time.

    Attributes:
        parameters: all weights, tied ones once.
        block_parameters: weights of one block.
        heads: attention heads of one block; 0 where there is no attention.
        d_ff: width of a block's feed-forward layer, the widest one.
        itemsize: bytes per weight in the dtype in which it is loaded.
        eager: whether attention scores are held as a whole.
    """

    parameters: int
    block_parameters: int
    n_layers: int
    d_model: int
    heads: int
    d_ff: int
    vocabulary: int
    itemsize: int
    eager: bool

    @property
    def bytes(self) -> int:
        """Bytes of the loaded weights."""
        return self.parameters * self.itemsize


def read_facts(source: ModelSource, directory: Path, where: str | None = None) -> ModelFacts:
    """The facts in a directory that holds at least the model's config.json, which messages call `where`.

    Raises:
        UserError: config.json is unreadable or describes no language model, or the configuration states another
            n_layers or d_model.
    """
    where = where or str(directory / "config.json")
    try:
        config = AutoConfig.from_pretrained(directory, **_LOCAL)
        text = config.get_text_config(decoder=True)
        facts = ModelFacts(
            architecture=(config.architectures or [config.model_type])[0],
            n_layers=int(text.num_hidden_layers),
            d_model=int(text.hidden_size),
            # MPT's own name for it is the second.
            context=getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None),
            vocabulary=int(text.vocab_size),
        )
    except _CONFIG_ERRORS as error:
        raise UserError(
            f"model {source.name}: {where} describes no language model that transformers knows.\n"
            f"{type(error).__name__}: {error}"
        ) from error
    for name in ("n_layers", "d_model"):
        stated, found = getattr(source, name), getattr(facts, name)
        if stated is not None and stated != found:
            raise UserError(
                f"model.{name}={stated}, but {where} says {found}: correct it, or set it to null "
                "to take it from the model"
            )
    return facts


def model_size(source: ModelSource, directory: Path, where: str | None = None) -> ModelSize:
    """The size of the model whose config.json lies in `directory`, counted on a model without memory behind it.

    Raises:
        UserError: config.json describes no causal language model that can be built, or one without a list of blocks.
    """
    try:
        config = AutoConfig.from_pretrained(directory, **_LOCAL)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=source.attn_implementation)
        text, blocks = config.get_text_config(decoder=True), find_blocks(model)
        d_model = int(text.hidden_size)
        # GPT-2 and its relatives state none; theirs is four times as wide as the residual stream.
        d_ff = getattr(text, "intermediate_size", None) or 4 * d_model
        return ModelSize(
            parameters=_count(model),
            block_parameters=_count(blocks) // len(blocks),
            n_layers=len(blocks),
            d_model=d_model,
            heads=int(getattr(text, "num_attention_heads", None) or 0),
            d_ff=max(d_ff) if isinstance(d_ff, (list, tuple)) else int(d_ff),
            vocabulary=int(text.vocab_size),
            itemsize=getattr(torch, source.dtype).itemsize,
            eager=model.config.get_text_config()._attn_implementation == "eager",
        )
    except _CONFIG_ERRORS as error:
        raise UserError(
            f"model {source.name}: cannot be built from {where or directory / 'config.json'}: {error}"
        ) from error


def _count(module: nn.Module) -> int:
    # `parameters` yields a tied weight once.
    return sum(parameter.numel() for parameter in module.parameters())


def load_language_model(source: ModelSource, device: str, store: Store) -> LanguageModel:
    """Loads a model and its tokenizer on `device` (see `resolve_device`). Code in a checkpoint is never run.

    A GGUF model is converted into `store` once.

    Raises:
        UserError: the source is missing, gated, unreachable, incomplete or not a supported causal language model, or
            there is no such device or too little memory on it.
    """
    target = resolve_device(device)
    hf, tokenizer = _load(source, source.files(store), store)
    try:
        model = LanguageModel(
            hf if source.device_map else hf.to(target), tokenizer, source.name, source.bos, source.sink_positions
        )
        model.check_architecture()
    except torch.OutOfMemoryError as error:
        raise UserError(f"model {source.name} does not fit on {target}: {error}\nTry model.dtype=bfloat16") from error
    return model


def load_tokenizer(source: ModelSource, store: Store) -> Any:
    """A model's tokenizer alone.

    Raises:
        UserError: the source is missing, gated, unreachable or incomplete.
    """
    directory = source.small_files(store)
    try:
        return AutoTokenizer.from_pretrained(directory, **_LOCAL)
    except _LOAD_ERRORS as error:
        raise _unloadable(source, directory, error) from error


def resolve_device(device: str) -> torch.device:
    """The torch device for auto (cuda where there is one) | cpu | cuda (or cuda:N).

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


def _load(source: ModelSource, directory: Path, store: Store) -> tuple[Any, Any]:
    """The transformers model (typed loosely: its `to` is wrapped beyond type checkers) and the tokenizer."""
    options = {"dtype": getattr(torch, source.dtype), "attn_implementation": source.attn_implementation}
    if source.device_map is not None:  # spread by accelerate, which numbers accelerators
        most = {int(place) if place.isdigit() else place: size for place, size in source.max_memory.items()}
        options |= {
            "device_map": source.device_map,
            "max_memory": most or None,
            "offload_folder": str(store.scratch("offload")),
        }
    try:
        with without_progress_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **options, **_LOCAL)
            tokenizer = AutoTokenizer.from_pretrained(directory, **_LOCAL)
    except _LOAD_ERRORS as error:
        raise _unloadable(source, directory, error) from error
    hf, info = loaded
    # transformers fills absent weights with random numbers and only logs it.
    if info["missing_keys"]:
        absent = sorted(info["missing_keys"])
        raise UserError(
            f"model {source.name}: {source.origin} ({directory}) lacks {len(absent)} weights of {type(hf).__name__}, "
            f"such as {absent[0]}; the checkpoint is incomplete or of another architecture"
        )
    return hf, tokenizer


def _unloadable(source: ModelSource, directory: Path, error: Exception) -> UserError:
    return UserError(f"model {source.name}: cannot load {source.origin} ({directory}).\n{error}\n{source.advice}")
