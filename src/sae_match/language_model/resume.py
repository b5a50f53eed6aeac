"""Resuming a forward pass after a block, from a residual stream that replaces the block's output.

What comes before the blocks (masks, rotary or learned positions, embedding scaling) runs as usual, so nothing about the
architecture is re-implemented here; only the blocks up to the resumed one are passed through instead of computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_match.language_model.blocks import residual_of


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Gives one module instance another `forward` inside the block; the old one comes back whatever happens."""
    had_own = "forward" in module.__dict__
    previous = module.forward
    module.forward = forward
    try:
        yield
    finally:
        if had_own:
            module.forward = previous
        else:
            del module.forward


@contextmanager
def resumed_after(
    blocks: nn.ModuleList, layer: int, residual: Float[Tensor, "B T d"], returns_tuples: bool
) -> Iterator[None]:
    """Inside the block, a forward pass through `blocks` takes `residual` as the output of block `layer`.

    Blocks up to and including `layer` are not computed.

    Args:
        blocks: all blocks of the model.
        layer: the block whose output is given.
        residual: its output, in the dtype and on the device of the model.
        returns_tuples: whether these blocks return a tuple that starts with the residual stream.
    """

    def pass_through(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden,) if returns_tuples else hidden

    def give_residual(*args: Any, **_kwargs: Any) -> Any:
        hidden = pass_through(*args, **_kwargs)
        expected = residual_of(hidden).shape
        if residual.shape != expected:
            raise ValueError(f"residual has shape {tuple(residual.shape)}, these token ids need {tuple(expected)}")
        return (residual,) if returns_tuples else residual

    with ExitStack() as stack:
        for block in blocks[:layer]:
            stack.enter_context(replaced_forward(block, pass_through))
        stack.enter_context(replaced_forward(blocks[layer], give_residual))
        yield


@torch.no_grad()
def blocks_return_tuples(decoder: nn.Module, blocks: nn.ModuleList, device: torch.device) -> bool:
    """Whether this architecture's blocks return tuples, found by running one token through the model."""
    outputs: list[Any] = []
    hook = blocks[0].register_forward_hook(lambda _block, _args, output: outputs.append(output))
    try:
        decoder(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    finally:
        hook.remove()
    return isinstance(outputs[0], tuple)
