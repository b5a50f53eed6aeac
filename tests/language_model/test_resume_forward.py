"""Losses, and losses resumed from a replaced residual, against plain full forward passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sae_match.errors import UserError
from sae_match.language_model import LanguageModel, forward_pass


def reference_losses(
    model: LanguageModel, ids: Tensor, layer: int | None = None, residual: Tensor | None = None
) -> Tensor:
    """A full forward pass of the untouched transformers model, with a plain hook on one block."""
    hooks = []
    if layer is not None:

        def replace(_block: nn.Module, _args: object, output: object) -> object:
            parts = isinstance(output, (tuple, list))
            return type(output)([residual, *output[1:]]) if parts else residual

        hooks.append(model.blocks[layer].register_forward_hook(replace))
    with torch.no_grad():
        logits = model.hf(input_ids=ids, use_cache=False).logits.double()
    for hook in hooks:
        hook.remove()
    return functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").float()


def other_residual(model: LanguageModel, ids: Tensor) -> Tensor:
    return torch.randn(*ids.shape, model.d_model, generator=torch.Generator().manual_seed(3))


def count_computed(model: LanguageModel, counts: dict[int, int]) -> list[torch.utils.hooks.RemovableHandle]:
    """Counts calls of the modules inside each block; a block that is passed through calls none."""
    handles = []
    for layer, block in enumerate(model.blocks):
        counts[layer] = 0
        for module in block.modules():
            if any(True for _ in module.parameters(recurse=False)):  # GPT-1 shares its activation function among blocks

                def count(*_: object, layer: int = layer) -> None:
                    counts[layer] += 1

                handles.append(module.register_forward_pre_hook(count))
    return handles


def assert_untouched(model: LanguageModel) -> None:
    for module in model.hf.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_losses_equal_a_plain_forward_pass(model: LanguageModel, ids: Tensor) -> None:
    got = model.token_losses(ids)
    assert got.shape == (3, 9) and got.dtype == torch.float32
    torch.testing.assert_close(got, reference_losses(model, ids), rtol=1e-5, atol=1e-5)


def test_resume_equals_a_full_pass_with_the_output_replaced(model: LanguageModel, ids: Tensor) -> None:
    residual = other_residual(model, ids)
    plain = model.token_losses(ids)
    for layer in range(model.n_layers):
        got = model.token_losses_from(layer, residual, ids)
        torch.testing.assert_close(got, reference_losses(model, ids, layer, residual), rtol=1e-5, atol=1e-5)
        assert (got - plain).abs().max() > 1e-3, "the replaced residual must show"


def test_blocks_up_to_the_layer_are_not_computed(model: LanguageModel, ids: Tensor) -> None:
    residual = other_residual(model, ids)
    model.token_losses_from(0, residual, ids)  # the one-token probe for tuples is not counted
    for layer in range(model.n_layers):
        counts: dict[int, int] = {}
        handles = count_computed(model, counts)
        model.token_losses_from(layer, residual, ids)
        for handle in handles:
            handle.remove()
        assert [counts[block] > 0 for block in range(model.n_layers)] == [
            block > layer for block in range(model.n_layers)
        ]


def test_own_residual_changes_nothing(model: LanguageModel, ids: Tensor) -> None:
    plain = model.token_losses(ids)
    for layer, residual in model.resid_post(ids, range(model.n_layers)).items():
        assert torch.equal(model.token_losses_from(layer, residual, ids), plain)


def test_residual_is_cast_to_the_model(make_model: Callable[..., LanguageModel], ids: Tensor) -> None:
    model = make_model("llama", dtype=torch.bfloat16)
    own = model.resid_post(ids, [1])[1]
    assert own.dtype == torch.bfloat16
    got = model.token_losses_from(1, own.double(), ids)
    assert got.dtype == torch.float32
    assert torch.equal(got, model.token_losses(ids))


def test_losses_do_not_depend_on_the_chunk(llama: LanguageModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = llama.token_losses(ids)
    for elements in (1, 61 * 4, 61 * 27):
        monkeypatch.setattr(forward_pass, "CHUNK_ELEMENTS", elements)
        torch.testing.assert_close(llama.token_losses(ids), whole, rtol=1e-6, atol=1e-6)


def test_nothing_stays_behind(model: LanguageModel, ids: Tensor) -> None:
    model.token_losses_from(1, other_residual(model, ids), ids)
    model.resid_post(ids, [0, 1])
    assert_untouched(model)


def test_nothing_stays_behind_after_an_exception(
    model: LanguageModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = model.token_losses(ids)
    with pytest.raises(ValueError, match=r"residual has shape \(3, 9, 16\)"):
        model.token_losses_from(1, other_residual(model, ids)[:, 1:], ids)
    assert_untouched(model)

    def fail(*_: object) -> None:
        raise ArithmeticError("in the last block")

    handle = next(model.blocks[-1].children()).register_forward_pre_hook(fail)
    for call in (
        lambda: model.token_losses_from(0, other_residual(model, ids), ids),
        lambda: model.resid_post(ids, [2]),
    ):
        with pytest.raises(ArithmeticError):
            call()
    handle.remove()
    assert_untouched(model)
    assert torch.equal(model.token_losses(ids), plain)


def test_a_head_that_skips_the_decoder_is_refused(
    llama: LanguageModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the trick of `next_token_losses`: it must notice a model that does not use the replaced decoder."""
    real = type(llama.hf).forward
    embedding = llama.hf.get_input_embeddings()

    def forward(self: nn.Module, input_ids: Tensor, **kwargs: object) -> object:
        return real(self, inputs_embeds=embedding(input_ids), **kwargs) if input_ids.shape[0] > 1 else _NoDecoder()

    class _NoDecoder:
        logits = torch.zeros(1, 27, 61)

    monkeypatch.setattr(type(llama.hf), "forward", forward)
    with pytest.raises(UserError, match="decoder"):
        llama.token_losses(ids)


def test_bad_layers_and_windows(llama: LanguageModel, ids: Tensor) -> None:
    residual = other_residual(llama, ids)
    for layer in (-1, 3):
        with pytest.raises(UserError, match="blocks 0 to 2"):
            llama.token_losses_from(layer, residual, ids)
        with pytest.raises(UserError, match="blocks 0 to 2"):
            llama.resid_post(ids, [0, layer])
    with pytest.raises(UserError):
        llama.resid_post(ids, [])
    for bad in (ids[:, :1], ids[0]):
        with pytest.raises(ValueError, match="at least 2 tokens"):
            llama.token_losses(bad)
