"""The content hash that stands for a language model in cache keys and records."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_match.language_model.placement import named_weights

_NOT_CONTENT = ("transformers_version", "architectures", "use_cache", "torch_dtype", "dtype")
"""Config entries that do not change what the model computes (dtypes enter with the weights themselves)."""


def model_key(model: PreTrainedModel) -> str:
    """Hash (hex, 32 digits) of the config, the attention implementation and every weight and buffer, dtype included.

    Names and paths do not enter: the same weights from the hub and from a local copy have the same key.
    """
    digest = hashlib.sha256()
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if not name.startswith("_") and name not in _NOT_CONTENT
    }
    config["attention"] = model.config.get_text_config()._attn_implementation
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in named_weights(model):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:32]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
