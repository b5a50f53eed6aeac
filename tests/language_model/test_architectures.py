"""Every architecture against what transformers itself says: hidden states, its own loss, where its blocks are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae_match.language_model import LanguageModel

BLOCKS_RETURN_TUPLES = {"tiny-gptj", "tiny-gpt_neo"}


def test_resid_post_is_the_hidden_state_after_the_block(model: LanguageModel, ids: Tensor) -> None:
    with torch.no_grad():
        states = model.hf(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    streams = model.resid_post(ids, range(model.n_layers))
    for layer in range(model.n_layers - 1):  # the last hidden state is after the final norm
        torch.testing.assert_close(streams[layer], states[layer + 1], rtol=1e-6, atol=1e-6)
    assert (streams[model.n_layers - 1] - states[-1]).abs().max() > 1e-3


def test_token_losses_average_to_the_librarys_own_loss(model: LanguageModel, ids: Tensor) -> None:
    with torch.no_grad():
        loss = model.hf(input_ids=ids, labels=ids, use_cache=False).loss
    torch.testing.assert_close(model.token_losses(ids).mean(), loss, rtol=1e-5, atol=1e-5)


def test_the_captured_residual_gives_back_every_token_loss(model: LanguageModel, ids: Tensor) -> None:
    plain = model.token_losses(ids)
    for layer, residual in model.resid_post(ids, range(model.n_layers)).items():
        torch.testing.assert_close(model.token_losses_from(layer, residual, ids), plain, rtol=0, atol=0)


def test_both_kinds_of_block_are_among_them(model: LanguageModel) -> None:
    assert model._returns_tuples == (model.name in BLOCKS_RETURN_TUPLES)
    assert len(model.blocks) == model.n_layers == 3 and model.d_model == 16


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "gemma3_multimodal", "gpt_neo"])
def test_sliding_windows_end_where_they_should(make_model: Callable[..., LanguageModel], architecture: str) -> None:
    """Behind block 0, which slides, a token 3 back no longer shows, in a full pass and in a resumed one."""
    model = make_model(architecture)
    ids = torch.arange(10, 20)[None]
    changed = ids.clone()
    changed[0, 0] = 50
    before, after = (model.resid_post(x, [0])[0] for x in (ids, changed))
    assert torch.equal(before[0, 3:], after[0, 3:]) and not torch.equal(before[0, :2], after[0, :2])


def test_the_text_part_of_a_multimodal_model_is_the_text_model(
    make_model: Callable[..., LanguageModel], ids: Tensor
) -> None:
    """Gemma 3 4B and larger come with a vision tower; the same text weights alone give the same numbers."""
    whole, text = make_model("gemma3_multimodal"), make_model("gemma3", seed=1)
    text.decoder.load_state_dict(whole.decoder.state_dict())
    text.hf.get_output_embeddings().load_state_dict(whole.hf.get_output_embeddings().state_dict())
    torch.testing.assert_close(whole.token_losses(ids), text.token_losses(ids), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(whole.resid_post(ids, [1])[1], text.resid_post(ids, [1])[1], rtol=1e-6, atol=1e-6)


def test_soft_capping_is_part_of_the_loss(make_model: Callable[..., LanguageModel], ids: Tensor) -> None:
    """With logits capped at 0.5 no loss is far from that of a uniform guess; without the cap they are."""
    capped = make_model("gemma2")
    assert (capped.token_losses(ids) - torch.tensor(61.0).log()).abs().max() <= 1.0
    capped.hf.config.final_logit_softcapping = None
    assert (capped.token_losses(ids) - torch.tensor(61.0).log()).abs().max() > 1.0
