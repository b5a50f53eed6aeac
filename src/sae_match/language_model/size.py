"""How large a language model is, from its configuration alone: no weight is read or allocated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sae_match.config.schema import ModelConfig
from sae_match.errors import UserError
from sae_match.language_model.blocks import find_blocks

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


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


def model_size(cfg: ModelConfig, directory: Path, where: str | None = None) -> ModelSize:
    """The size of the model whose config.json lies in `directory`, counted on a model without memory behind it.

    Args:
        where: how messages name that file; its path if None.

    Raises:
        UserError: config.json describes no causal language model that can be built.
    """
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=cfg.attn_implementation)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ImportError) as error:
        raise UserError(
            f"model {cfg.name}: cannot be built from {where or directory / 'config.json'}: {error}"
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
        itemsize=DTYPE_BYTES[cfg.dtype],
        eager=model.config.get_text_config()._attn_implementation == "eager",
    )


def _count(module: nn.Module) -> int:
    # `parameters` yields a tied weight once.
    return sum(parameter.numel() for parameter in module.parameters())
