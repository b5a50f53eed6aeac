"""Where the parts of a model are: all on one device, or spread by accelerate over GPUs, main memory and disk.

accelerate moves a module's inputs, and its offloaded weights, to the module's execution device when it is called; its
forward pass is otherwise the same. What stands beside the forward pass has to ask where things are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn


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
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        with align_module_device(module, "cpu"):
            yield name, getattr(module, leaf)


def _hooks(module: nn.Module) -> list[object]:
    hook = getattr(module, "_hf_hook", None)
    return list(getattr(hook, "hooks", [hook]))
