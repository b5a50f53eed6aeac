"""What a changed residual stream does to later layers and to the model's predictions, and the gradient of its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from sae_match.language_model.forward_pass import (
    CHUNK_ELEMENTS,
    StopForward,
    logits_of,
    recording,
    residual_of,
    resumed_after,
)
from sae_match.language_model.model import LanguageModel, execution_device


@torch.no_grad()
def resid_post_from(
    model: LanguageModel, layer: int, residual: Float[Tensor, "B T d"], ids: Int[Tensor, "B T"], target: int
) -> Float[Tensor, "B T d"]:
    """The residual stream after block `target` when `residual` is that after block `layer`.

    Only the blocks between the two run.

    Args:
        layer, target: 0-based, layer < target.
        residual: any float type; cast to the model's.

    Raises:
        UserError: a layer does not exist.
    """
    model.check_layers([layer, target])
    found: dict[int, Tensor] = {}
    with (
        _resumed(model, layer, residual),
        recording(model.blocks, [target], found.__setitem__),
        suppress(StopForward),
    ):
        model.decoder(input_ids=ids.to(model.device), use_cache=False)
    return found[target]


@torch.no_grad()
def next_token_divergence(
    model: LanguageModel,
    layer: int,
    clean: Float[Tensor, "B T d"],
    changed: Float[Tensor, "V B T d"],
    ids: Int[Tensor, "B T"],
    first: Int[Tensor, " B"],
    batch: int = 8,
) -> Float[Tensor, "V B"]:
    """KL(p || q) of the next-token distributions, summed over the positions of each window from `first` on, nats.

    p is the distribution with `clean` as the residual stream after block `layer`, q that with `changed`. float64.

    Args:
        first: position of each window before which nothing is changed.
        batch: windows per forward pass; changes memory use, not the result.

    Raises:
        UserError: the layer does not exist.
    """
    model.check_layers([layer])
    n, windows, tokens, _ = changed.shape
    rows = torch.cat([clean[None].to(changed.device), changed]).flatten(0, 1)
    outputs = [
        _final(model, layer, part, part_ids)
        for part, part_ids in zip(rows.split(batch), ids.repeat(n + 1, 1).split(batch), strict=True)
    ]
    states = torch.cat([output["last_hidden_state"] for output in outputs]).view(n + 1, windows, tokens, -1)
    counted = (torch.arange(tokens)[None, :] >= first[:, None].cpu()).to(states.device)
    window = counted.nonzero()[:, 0]
    selected, kind = states[:, counted], type(outputs[0])
    divergence = torch.zeros(n, windows, dtype=torch.float64, device=states.device)
    chunk = max(1, CHUNK_ELEMENTS // model.hf.config.get_text_config().vocab_size)
    for start in range(0, len(window), chunk):
        part = slice(start, start + chunk)
        log_p, *log_q = (_log_probabilities(model, kind, of_variant[part]) for of_variant in selected)
        p = log_p.exp()
        for i, log_of_changed in enumerate(log_q):
            divergence[i].index_add_(0, window[part], (p * (log_p - log_of_changed)).sum(dim=1, dtype=torch.float64))
    return divergence.clamp(min=0)


def loss_gradients(
    model: LanguageModel,
    layers: Sequence[int],
    residual: Float[Tensor, "B T d"],
    ids: Int[Tensor, "B T"],
    sink_positions: int = 1,
) -> dict[int, Float[Tensor, "B T d"]]:
    """Gradient of the summed next-token loss with respect to the residual streams after `layers`, float32.

    Windows do not see each other, so that each row is the gradient of its own window's loss.

    Args:
        layers: ascending; the forward pass resumes after the first of them.
        residual: resid_post of the first of them.
        sink_positions: predictions made at these first positions are not counted.

    Raises:
        UserError: a layer does not exist.
    """
    model.check_layers(layers)
    lowest, streams = layers[0], dict[int, Tensor]()
    with torch.enable_grad():
        leaf = _own(model, lowest, residual).detach().requires_grad_()
        with _resumed(model, lowest, leaf), _retaining(model.blocks, layers[1:], streams.__setitem__):
            output = model.decoder(input_ids=ids.to(model.device), use_cache=False)
        states = output["last_hidden_state"]
        states.backward(_gradient_of_states(model, type(output), states.detach(), ids, sink_positions))
    found = {lowest: leaf, **streams}
    return {layer: _gradient(found[layer]) for layer in layers}


def _gradient_of_states(
    model: LanguageModel, kind: type[ModelOutput], states: Tensor, ids: Tensor, sink_positions: int
) -> Tensor:
    """Gradient of the loss with respect to the final hidden states; logits of a few positions exist at a time."""
    gradient = torch.zeros_like(states)
    counted = (slice(None), slice(sink_positions, -1))
    flat, targets = states[counted].flatten(0, 1), ids[:, sink_positions + 1 :].flatten().to(states.device)
    chunk, parts = max(1, CHUNK_ELEMENTS // model.hf.config.get_text_config().vocab_size), list[Tensor]()
    for part, target in zip(flat.split(chunk), targets.split(chunk), strict=True):
        leaf = part.clone().requires_grad_()
        logits = logits_of(model.hf, model.decoder, kind, leaf).float()
        functional.cross_entropy(logits, target, reduction="sum").backward()
        parts.append(_gradient(leaf))
    gradient[counted] = torch.cat(parts).view_as(states[counted]).to(states.dtype)
    return gradient


def _gradient(values: Tensor) -> Tensor:
    assert values.grad is not None  # it was retained, and the loss depends on it
    return values.grad.float()


def _log_probabilities(model: LanguageModel, kind: type[ModelOutput], states: Tensor) -> Tensor:
    return logits_of(model.hf, model.decoder, kind, states).float().log_softmax(dim=1)


def _final(model: LanguageModel, layer: int, residual: Tensor, ids: Tensor) -> ModelOutput:
    with _resumed(model, layer, residual):
        found: ModelOutput = model.decoder(input_ids=ids.to(model.device), use_cache=False)
    return found


def _own(model: LanguageModel, layer: int, residual: Tensor) -> Tensor:
    return residual.to(execution_device(model.blocks[layer]), model.hf.dtype)


@contextmanager
def _resumed(model: LanguageModel, layer: int, residual: Tensor) -> Iterator[None]:
    with resumed_after(model.blocks, layer, _own(model, layer, residual), model.as_output):
        yield


@contextmanager
def _retaining(blocks: nn.ModuleList, layers: Sequence[int], keep: Callable[[int, Tensor], object]) -> Iterator[None]:
    """Hands over the outputs of blocks as they arise, with gradients that stay."""

    def hook_of(layer: int) -> Callable[..., None]:
        def hook(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            residual = residual_of(output)
            residual.retain_grad()
            keep(layer, residual)

        return hook

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(blocks[layer].register_forward_hook(hook_of(layer)).remove)
        yield
