"""Forward passes: finding the transformer blocks, watching them, resuming after one, and next-token losses.

A pass that resumes after a block computes what comes before the blocks (masks, rotary or learned positions, embedding
scaling) as usual, so nothing about the architecture is re-implemented here; only the blocks up to the resumed one are
passed through. Every change to a model lives in a context manager that undoes it, whatever happens inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from sae_match.errors import UserError

SUPPORTED = "Supported are decoder-only models laid out like Llama, Gemma, GPT-2 or GPT-NeoX in transformers."
CHUNK_ELEMENTS = 2**25
"""Logits held at once (128 MiB in float32); smaller chunks make the head slower on a CPU."""


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
            f"{[name for _, name, _ in shallowest] or 'none'}. {SUPPORTED}"
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


def residual_of(output: Any) -> Tensor:
    """The residual stream in a block's output: the output itself, or the first part of a tuple or list."""
    return output[0] if isinstance(output, (tuple, list)) else output


@contextmanager
def hooked(blocks: nn.ModuleList, layers: Collection[int], see: Callable[[int, Any], Any]) -> Iterator[None]:
    """Inside the block, `see(layer, output)` is called with what each of these blocks returns.

    What it returns, if not None, goes on in that place.
    """

    def hook_of(layer: int) -> Callable[..., Any]:
        return lambda _block, _args, output: see(layer, output)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(blocks[layer].register_forward_hook(hook_of(layer)).remove)
        yield


@contextmanager
def recording(
    blocks: nn.ModuleList, layers: Sequence[int], consume: Callable[[int, Float[Tensor, "B T d"]], object]
) -> Iterator[None]:
    """Hands the outputs of `layers` to `consume` as they arise, and ends each forward pass after the last of them.

    The end comes as `StopForward`, which the caller catches around its forward pass.
    """

    def record(layer: int, output: Any) -> None:
        consume(layer, residual_of(output))
        if layer == max(layers):
            raise StopForward

    with hooked(blocks, set(layers), record):
        yield


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
    blocks: nn.ModuleList, layer: int, residual: Float[Tensor, "B T d"], as_output: Callable[[Tensor], Any]
) -> Iterator[None]:
    """Inside the block, a forward pass through `blocks` takes `residual` as the output of block `layer`.

    Blocks up to and including `layer` are not computed. `residual` has the dtype and device of that block's output;
    `as_output` is the model's `output_maker`.
    """

    def pass_through(*args: Any, **kwargs: Any) -> Any:
        return as_output(args[0] if args else kwargs["hidden_states"])

    def give_residual(*args: Any, **kwargs: Any) -> Any:
        expected = residual_of(pass_through(*args, **kwargs)).shape
        if residual.shape != expected:
            raise ValueError(f"residual has shape {tuple(residual.shape)}, these token ids need {tuple(expected)}")
        return as_output(residual)

    with ExitStack() as stack:
        for block in blocks[:layer]:
            stack.enter_context(replaced_forward(block, pass_through))
        stack.enter_context(replaced_forward(blocks[layer], give_residual))
        yield


@torch.no_grad()
def output_maker(decoder: nn.Module, blocks: nn.ModuleList, device: torch.device) -> Callable[[Tensor], Any]:
    """Puts a residual stream into what this architecture's blocks return, found by running one token through the model.

    That is the residual itself, or a tuple or list that begins with it; the other parts (attention weights, caches) are
    None, as where they were not asked for.
    """
    outputs: list[Any] = []

    def keep(_layer: int, output: Any) -> None:
        outputs.append(output)
        raise StopForward

    with hooked(blocks, [0], keep), suppress(StopForward):
        decoder(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    (found,) = outputs
    if not isinstance(found, (tuple, list)):
        return lambda residual: residual
    return lambda residual: type(found)([residual, *[None] * (len(found) - 1)])


def next_token_losses(
    model: PreTrainedModel, decoder: nn.Module, output: ModelOutput, ids: Int[Tensor, "B T"]
) -> Float[Tensor, "B T-1"]:
    """Cross-entropy in nats of token t + 1 given the final hidden state at t, in float32.

    The model's own head is used, so that soft-capping and logit scales stay in: its decoder is replaced, for each chunk
    of tokens, by one that returns the given hidden states. `output` is what the decoder returned for `ids`; its
    `last_hidden_state` is taken after the final norm.
    """
    states = output["last_hidden_state"][:, :-1].flatten(0, 1)
    targets = ids[:, 1:].flatten().to(states.device)
    chunk = max(1, CHUNK_ELEMENTS // model.config.get_text_config().vocab_size)
    losses = [
        functional.cross_entropy(logits_of(model, decoder, type(output), part).float(), target, reduction="none")
        for part, target in zip(states.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(losses).view(ids.shape[0], ids.shape[1] - 1)


def logits_of(
    model: PreTrainedModel, decoder: nn.Module, output_type: type[ModelOutput], states: Float[Tensor, "n d"]
) -> Float[Tensor, "n vocab"]:
    """The model's own output for final hidden states: its forward pass with the decoder replaced."""
    calls = 0

    def give_states(*_args: Any, **_kwargs: Any) -> ModelOutput:
        nonlocal calls
        calls += 1
        return output_type(last_hidden_state=states[None])

    placeholder = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
    with replaced_forward(decoder, give_states):
        logits = model(input_ids=placeholder, use_cache=False).logits[0]
    if calls != 1:
        raise UserError(
            f"{type(model).__name__} does not run its decoder once per forward pass, so its losses cannot be resumed "
            "from a residual stream: choose another model, or evaluation=weights_only"
        )
    return logits
