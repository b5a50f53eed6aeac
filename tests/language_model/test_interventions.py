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
    changed = torch.stack([clean, clean.clone(), clean.clone()])
    changed[1, :, 4:] += 0.1 * other(model, ids, 5)[:, 4:]
    changed[2, 0, 6:] *= 1.5
    first = torch.tensor([4, 5, 6])
    with torch.no_grad():
        log_p = full_pass(model, ids, {1: clean}, 1)[0].double().log_softmax(dim=-1)
        expected = torch.stack(
            [
                functional.kl_div(
                    full_pass(model, ids, {1: one}, 1)[0].double().log_softmax(dim=-1),
                    log_p,
                    log_target=True,
                    reduction="none",
                ).sum(dim=-1)
                for one in changed
            ]
        )
    expected = torch.stack([expected[:, row, start:].sum(dim=1) for row, start in enumerate(first)], dim=1)
    got = next_token_divergence(model, 1, clean, changed, ids, first)
    assert got.shape == (3, 3)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
    assert bool((got[0] == 0).all()) and float(got[1].min()) > 0 and float(got[2, 1:].max()) == 0
    monkeypatch.setattr(interventions, "CHUNK_ELEMENTS", 61 * 2)
    torch.testing.assert_close(
        next_token_divergence(model, 1, clean, changed, ids, first, batch=2), got, rtol=1e-3, atol=1e-5
    )


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
        lambda: next_token_divergence(llama, 3, other(llama, ids), other(llama, ids)[None], ids, torch.zeros(3).long()),
        lambda: loss_gradients(llama, [3], other(llama, ids), ids),
    ):
        with pytest.raises(UserError, match="has blocks 0 to 2"):
            call()
