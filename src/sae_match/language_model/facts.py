"""What a model's config.json says about it: its shape and its size. No weight is read or allocated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sae_match.errors import UserError
from sae_match.language_model.forward_pass import find_blocks
from sae_match.language_model.sources import ModelSource

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


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
        d_ff: width of a block's feed-forward layer.
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
    """The facts in a directory that holds at least the model's config.json.

    Args:
        where: how messages name that file; its path if None.

    Raises:
        UserError: config.json is unreadable or describes no language model, or the configuration states another
            n_layers or d_model.
    """
    where = where or str(directory / "config.json")
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        text = config.get_text_config(decoder=True)
        facts = ModelFacts(
            architecture=(config.architectures or [config.model_type])[0],
            n_layers=int(text.num_hidden_layers),
            d_model=int(text.hidden_size),
            context=getattr(text, "max_position_embeddings", None),
            vocabulary=int(text.vocab_size),
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
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

    Args:
        where: how messages name that file; its path if None.

    Raises:
        UserError: config.json describes no causal language model that can be built.
    """
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=source.attn_implementation)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ImportError) as error:
        raise UserError(
            f"model {source.name}: cannot be built from {where or directory / 'config.json'}: {error}"
        ) from error
    text, blocks = config.get_text_config(decoder=True), find_blocks(model)
    d_model = int(text.hidden_size)
    return ModelSize(
        parameters=_count(model),
        block_parameters=_count(blocks) // len(blocks),
        n_layers=len(blocks),
        d_model=d_model,
        heads=int(text.num_attention_heads),
        # GPT-2 and its relatives state none; theirs is four times as wide as the residual stream.
        d_ff=int(getattr(text, "intermediate_size", None) or 4 * d_model),
        vocabulary=int(text.vocab_size),
        itemsize=DTYPE_BYTES[source.dtype],
        eager=model.config.get_text_config()._attn_implementation == "eager",
    )


def _count(module: nn.Module) -> int:
    # `parameters` yields a tied weight once.
    return sum(parameter.numel() for parameter in module.parameters())
