"""What a changed residual stream does to later layers and to the model's predictions, and the gradient of its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from sae_match.language_model.forward_pass import (
    CHUNK_ELEMENTS,
    StopForward,
    hooked,
    logits_of,
    recording,
    residual_of,
)
from sae_match.language_model.model import LanguageModel

Change = Callable[[Float[Tensor, "B T d"]], Float[Tensor, "B T d"]]
"""From the residual stream after a block, as it is by then, to what takes its place."""
NOTHING: Mapping[int, Change] = MappingProxyType({})


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
        model.resumed(layer, residual),
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
    divergence, _ = _compared(model, kind, before, after, ids, window, first)
    return divergence.sum(dim=1).clamp(min=0)


class Intervention(NamedTuple):
    """A forward pass that resumes after block `layer` with `residual`, and what it changes from that block on."""

    layer: int
    residual: Float[Tensor, "B T d"]
    changes: Mapping[int, Change]


@torch.no_grad()
def prediction_changes(
    model: LanguageModel,
    clean: Intervention,
    ids: Int[Tensor, "B T"],
    interventions: Sequence[Intervention],
    first: Int[Tensor, " B"],
) -> tuple[Float[Tensor, "n B T"], Float[Tensor, "n B T"]]:
    """What interventions do to the next-token predictions at every position from `first` on, 0 before; nats, float64.

    Every pass holds all windows at once.

    Args:
        clean: what they are compared with.
        first: position of each window before which nothing is changed.

    Returns:
        KL(clean || changed), and the loss on the true next token less the clean one; the last position has none, 0.

    Raises:
        UserError: a layer does not exist, or hidden states are no longer finite.
    """
    model.check_layers([clean.layer, *(layer for one in interventions for layer in (one.layer, *one.changes))])
    states = []
    for one in (clean, *interventions):
        with changing(model, one.changes):
            kind, found = _final_states(model, one.layer, one.residual, ids, len(ids))
        states.append(found)
    n = len(interventions)
    window = torch.arange(len(ids)).repeat(n)
    compared = _compared(model, kind, states[0], torch.cat(states[1:]), ids, window, first.repeat(n))
    divergence, loss = (values.view(n, *ids.shape) for values in compared)
    return divergence, loss


@torch.no_grad()
def continue_greedily(
    model: LanguageModel, ids: Int[Tensor, " T"], tokens: int, changes: Mapping[int, Change] = NOTHING
) -> list[int]:
    """The `tokens` token ids that follow `ids`, the most probable one each time, with residual streams changed."""
    found = ids[None].to(model.device)
    with changing(model, changes):
        for _ in range(tokens):
            output = model.decoder(input_ids=found, use_cache=False)
            logits = logits_of(model.hf, model.decoder, type(output), output["last_hidden_state"][0, -1:])
            found = torch.cat([found, logits.argmax(dim=1, keepdim=True).to(found.device)], dim=1)
    return [int(token) for token in found[0, len(ids) :]]


@contextmanager
def changing(model: LanguageModel, changes: Mapping[int, Change]) -> Iterator[None]:
    """Inside the block, what the changes make of the residual streams after their blocks goes on through the model."""
    as_output = model.as_output  # found by a pass of its own, before the hooks are there

    with hooked(model.blocks, changes, lambda layer, output: as_output(changes[layer](residual_of(output)))):
        yield


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

    def retain(layer: int, output: Any) -> None:
        streams[layer] = residual_of(output)
        streams[layer].retain_grad()

    with torch.enable_grad():
        leaf = residual.detach().requires_grad_()
        with model.resumed(lowest, leaf), hooked(model.blocks, layers[1:], retain):
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


def _compared(
    model: LanguageModel,
    kind: type[ModelOutput],
    before: Float[Tensor, "B T d"],
    after: Float[Tensor, "N T d"],
    ids: Int[Tensor, "B T"],
    window: Int[Tensor, " N"],
    first: Int[Tensor, " N"],
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    """KL divergence and difference in loss of two final states; logits of a few positions exist at a time."""
    length = ids.shape[1]
    chunk = max(1, CHUNK_ELEMENTS // model.hf.config.get_text_config().vocab_size)
    divergence, loss = torch.zeros(2, len(after), length, dtype=torch.float64)
    for at, states in enumerate(before):
        rows = (window == at).nonzero().flatten().tolist()
        for start in range(min((int(first[row]) for row in rows), default=length), length, chunk):
            here = slice(start, start + chunk)
            log_p = _log_probabilities(model, kind, states[here])
            p, target = log_p.exp(), ids[at, start + 1 : start + 1 + chunk, None].to(log_p.device)
            for row in rows:
                less = log_p - _log_probabilities(model, kind, after[row, here])
                divergence[row, here] = (p * less).sum(dim=1, dtype=torch.float64).cpu()
                loss[row, start : start + len(target)] = less[: len(target)].gather(1, target)[:, 0].double().cpu()
    counted = torch.arange(length) >= first[:, None]
    return divergence * counted, loss * counted


def _log_probabilities(model: LanguageModel, kind: type[ModelOutput], states: Tensor) -> Tensor:
    return logits_of(model.hf, model.decoder, kind, states).float().log_softmax(dim=1)


def _final_states(
    model: LanguageModel, layer: int, residual: Tensor, ids: Tensor, batch: int
) -> tuple[type[ModelOutput], Float[Tensor, "N T d"]]:
    """The decoder's output class, and its states after the final norm."""
    kind, states = ModelOutput, list[Tensor]()
    for part, part_ids in zip(residual.split(batch), ids.split(batch), strict=True):
        with model.resumed(layer, part):
            output = model.decoder(input_ids=part_ids.to(model.device), use_cache=False)
        kind = type(output)
        model.require_finite(output["last_hidden_state"], "the hidden state before the LM head")
        states.append(output["last_hidden_state"])
    return kind, torch.cat(states)
