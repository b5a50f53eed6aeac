"""Finding a model's transformer blocks, and watching, stopping after or bypassing them.

Every change to a model lives in a context manager that undoes it, whatever happens inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_match.errors import UserError


class StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass from inside a hook; never leaves this package."""


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks, in order: the only `ModuleList` of length `num_hidden_layers` below the decoder.

    Raises:
        UserError: there is no decoder, or no such list, or more than one at the same depth.
    """
    decoder = find_decoder(model)
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [
        (name.count("."), name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    shallowest = [entry for entry in found if entry[0] == min(depth for depth, _, _ in found)]
    if len(shallowest) != 1:
        raise UserError(
            f"{type(model).__name__}: expected one list of {n_layers} blocks (num_hidden_layers), found "
            f"{[name for _, name, _ in shallowest] or 'none'}. Supported are decoder-only models laid out like Llama, "
            "Gemma, GPT-2 or GPT-NeoX in transformers."
        )
    return shallowest[0][2]


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """The module that maps token ids to the hidden states after the final norm.

    Raises:
        UserError: the model has none (it is not a decoder-only language model).
    """
    decoder = model.get_decoder()
    if not isinstance(decoder, nn.Module) or decoder is model:
        raise UserError(f"{type(model).__name__} has no decoder: a causal (decoder-only) language model is needed")
    return decoder


def residual_of(output: Any) -> Float[Tensor, "B T d"]:
    """The residual stream in a block's output: the output itself, or its first part where blocks return tuples."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def recording(
    blocks: nn.ModuleList, layers: Sequence[int], consume: Callable[[int, Float[Tensor, "B T d"]], object]
) -> Iterator[None]:
    """Hands the outputs of `layers` to `consume` as they arise, and ends each forward pass after the last of them.

    The end comes as `StopForward`, which the caller catches around its forward pass.
    """

    def record(layer: int) -> Any:
        def hook(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            consume(layer, residual_of(output))
            if layer == max(layers):
                raise StopForward

        return hook

    with ExitStack() as hooks:
        for layer in set(layers):
            hooks.callback(blocks[layer].register_forward_hook(record(layer)).remove)
        yield
