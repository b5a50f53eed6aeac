"""Passes with a changed residual stream, and loss gradients, against plain full forward passes of transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sae_match.errors import UserError
from sae_match.language_model import LanguageModel, interventions
from sae_match.language_model.interventions import loss_gradients, next_token_divergence, resid_post_from
from tests.language_model.test_resume_forward import assert_untouched


def full_pass(model: LanguageModel, ids: Tensor, changes: dict[int, Tensor], target: int) -> tuple[Tensor, Tensor]:
    """Logits, and the residual stream after a block, of a pass with some blocks' outputs replaced; plain hooks only."""
    found: dict[int, Tensor] = {}

    def hook_of(layer: int):  # type: ignore[no-untyped-def]
        def hook(_block: object, _args: object, output: object) -> object:
            parts = isinstance(output, (tuple, list))
            own = output[0] if parts else output
            new = changes.get(layer, own)
            found[layer] = new
            return type(output)([new, *output[1:]]) if parts else new

        return hook

    hooks = [block.register_forward_hook(hook_of(layer)) for layer, block in enumerate(model.blocks)]
    logits = model.hf(input_ids=ids, use_cache=False).logits.float()
    for hook in hooks:
        hook.remove()
    return logits, found[target]


def other(model: LanguageModel, ids: Tensor, seed: int = 3) -> Tensor:
    return torch.randn(*ids.shape, model.d_model, generator=torch.Generator().manual_seed(seed))


def test_later_residuals_are_those_of_a_full_pass(model: LanguageModel, ids: Tensor) -> None:
    residual = other(model, ids)
    for target in (1, 2):
        with torch.no_grad():
            _, expected = full_pass(model, ids, {0: residual}, target)
        got = resid_post_from(model, 0, residual, ids, target)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert_untouched(model)


def test_divergence_is_that_of_two_full_passes(
    model: LanguageModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = other(model, ids)
    window, first = torch.tensor([0, 2, 2, 0, 1]), torch.tensor([4, 5, 4, 7, 4])
    changed = clean[window]
    changed[0, 4:] += 0.1 * other(model, ids, 5)[0, 4:]
    changed[1, 5:] += 0.3 * other(model, ids, 7)[0, 5:]
    changed[2, 4:] -= 0.2 * other(model, ids, 6)[1, 4:]
    changed[3, 7:] *= 1.5
    with torch.no_grad():
        log_p = full_pass(model, ids, {1: clean}, 1)[0].double().log_softmax(dim=-1)
        log_q = full_pass(model, ids[window], {1: changed}, 1)[0].double().log_softmax(dim=-1)
    expected = functional.kl_div(log_q, log_p[window], log_target=True, reduction="none").sum(dim=-1)
    expected = (expected * (torch.arange(ids.shape[1]) >= first[:, None])).sum(dim=1)
    got = next_token_divergence(model, 1, clean, ids, changed, window, first)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
    assert float(got[4]) < 1e-6 and float(got[:4].min()) > 1e-3
    monkeypatch.setattr(interventions, "CHUNK_ELEMENTS", 61 * 2)
    again = next_token_divergence(model, 1, clean, ids, changed, window, first, batch=2)
    torch.testing.assert_close(again, got, rtol=1e-3, atol=1e-5)


def test_gradients_are_those_of_a_full_pass(model: LanguageModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    residual = other(model, ids)
    leaf = residual.clone().requires_grad_()
    logits, later = full_pass(model, ids, {0: leaf}, 2)
    later.retain_grad()
    losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    losses[:, 2:].sum().backward()
    got = loss_gradients(model, [0, 2], residual, ids, sink_positions=2)
    assert leaf.grad is not None and later.grad is not None
    torch.testing.assert_close(got[0], leaf.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[2], later.grad, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(interventions, "CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(loss_gradients(model, [2], later.detach(), ids, 2)[2], got[2], rtol=1e-4, atol=1e-5)
    assert_untouched(model)
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_a_layer_that_does_not_exist_is_refused(llama: LanguageModel, ids: Tensor) -> None:
    for call in (
        lambda: resid_post_from(llama, 0, other(llama, ids), ids, 3),
        lambda: next_token_divergence(llama, 3, other(llama, ids), ids, other(llama, ids), *torch.zeros(2, 3).long()),
        lambda: loss_gradients(llama, [3], other(llama, ids), ids),
    ):
        with pytest.raises(UserError, match="has blocks 0 to 2"):
            call()
