"""A model's weights: where they are, on one device or spread by accelerate over GPUs, memory and disk; their hash.

accelerate moves a module's inputs, and its offloaded weights, to the module's execution device when it is called; its
forward pass is otherwise the same. What stands beside the forward pass has to ask where things are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_NOT_CONTENT = ("transformers_version", "architectures", "use_cache", "torch_dtype", "dtype")
"""Config entries that do not change what the model computes (dtypes enter with the weights themselves)."""


def execution_device(module: nn.Module) -> torch.device:
    """The device on which a module computes: accelerate's choice where there is one, else where its weights are."""
    for hook in _hooks(module):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            # accelerate numbers accelerators, and names everything else.
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return next(module.parameters()).device


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every entry of the state dict by name, sorted, on a real device; offloaded ones are read one at a time."""
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.device.type != "meta":
            yield name, tensor
            continue
        from accelerate.utils import align_module_device  # it put the weight elsewhere, so it is installed

        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        with align_module_device(module, "cpu"):
            yield name, getattr(module, leaf)


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


def _hooks(module: nn.Module) -> list[object]:
    hook = getattr(module, "_hf_hook", None)
    return list(getattr(hook, "hooks", [hook]))
