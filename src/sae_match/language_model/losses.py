"""Next-token losses from final hidden states, without holding the logits of all tokens at once."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from sae_match.errors import UserError
from sae_match.language_model.resume import replaced_forward

_CHUNK_ELEMENTS = 2**25
"""Logits held at once (128 MiB in float32); smaller chunks make the head slower on a CPU."""


@torch.no_grad()
def next_token_losses(
    model: PreTrainedModel, decoder: nn.Module, output: ModelOutput, ids: Int[Tensor, "B T"]
) -> Float[Tensor, "B T-1"]:
    """Cross-entropy in nats of token t + 1 given the final hidden state at t, in float32.

    The model's own head is used, so that soft-capping and logit scales stay in: its decoder is replaced, for each chunk
    of tokens, by one that returns the given hidden states.

    Args:
        model: the causal language model.
        decoder: its decoder.
        output: what the decoder returned for `ids`; its `last_hidden_state` is taken after the final norm.
        ids: the token ids, on any device.
    """
    states = output["last_hidden_state"][:, :-1].flatten(0, 1)
    targets = ids[:, 1:].flatten().to(states.device)
    chunk = max(1, _CHUNK_ELEMENTS // model.config.get_text_config().vocab_size)
    losses = [
        functional.cross_entropy(_logits(model, decoder, type(output), part).float(), target, reduction="none")
        for part, target in zip(states.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(losses).view(ids.shape[0], ids.shape[1] - 1)


def _logits(
    model: PreTrainedModel, decoder: nn.Module, output_type: type[ModelOutput], states: Float[Tensor, "n d"]
) -> Float[Tensor, "n vocab"]:
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
