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
    ids: Int[Tensor, "B T"],
    changed: Float[Tensor, "N T d"],
    window: Int[Tensor, " N"],
    first: Int[Tensor, " N"],
    batch: int = 8,
) -> Float[Tensor, " N"]:
    """KL(p || q) of the next-token distributions, summed over the positions of a window from `first` on, nats.

    p is the distribution with `clean` as the residual stream after block `layer`, q that with `changed`. float64.

    Args:
        window: which of the B windows each changed residual stream belongs to.
        first: position before which nothing is changed in it.
        batch: windows per forward pass; changes memory use, not the result.

    Raises:
        UserError: the layer does not exist.
    """
    model.check_layers([layer])
    kind, before = _final_states(model, layer, clean, ids, batch)
    _, after = _final_states(model, layer, changed, ids[window], batch)
    chunk = max(1, CHUNK_ELEMENTS // model.hf.config.get_text_config().vocab_size)
    found = torch.zeros(len(changed), dtype=torch.float64)
    for at, states in enumerate(before):
        rows = (window == at).nonzero().flatten().tolist()
        for start in range(min((int(first[row]) for row in rows), default=ids.shape[1]), ids.shape[1], chunk):
            log_p = _log_probabilities(model, kind, states[start : start + chunk])
            p, position = log_p.exp(), torch.arange(start, start + len(log_p))
            for row in rows:
                log_q = _log_probabilities(model, kind, after[row, start : start + chunk])
                divergence = (p * (log_p - log_q)).sum(dim=1, dtype=torch.float64).cpu()
                found[row] += divergence[position >= first[row]].sum()
    return found.clamp(min=0)


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


def _final_states(
    model: LanguageModel, layer: int, residual: Tensor, ids: Tensor, batch: int
) -> tuple[type[ModelOutput], Float[Tensor, "N T d"]]:
    """The decoder's output class, and its states after the final norm."""
    kind, states = ModelOutput, list[Tensor]()
    for part, part_ids in zip(residual.split(batch), ids.split(batch), strict=True):
        with _resumed(model, layer, part):
            output = model.decoder(input_ids=part_ids.to(model.device), use_cache=False)
        kind = type(output)
        states.append(output["last_hidden_state"])
    return kind, torch.cat(states)


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
