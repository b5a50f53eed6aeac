"""Every architecture against what transformers itself says: hidden states, its own loss, where its blocks are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from sae_match.errors import UserError
from sae_match.language_model import LanguageModel, load_language_model
from sae_match.language_model.loading import model_size, read_facts
from sae_match.language_model.sources import LocalModel
from sae_match.store import Store
from tests.language_model.conftest import CONFIGS

BLOCKS_RETURN = {"gptj": (tuple, 2), "gpt_neo": (tuple, 2), "gpt1": (list, 1), "bamba": (tuple, 2), "mpt": (tuple, 2)}


def test_resid_post_is_the_hidden_state_after_the_block(model: LanguageModel, ids: Tensor) -> None:
    if model.name in ("tiny-mamba", "tiny-gpt1"):
        pytest.skip("transformers gives the mixers' outputs; no final norm")
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


def test_every_kind_of_block_is_among_them(model: LanguageModel) -> None:
    output = model.as_output(torch.zeros(1))
    kind, length = BLOCKS_RETURN.get(model.name.removeprefix("tiny-"), (Tensor, 1))
    assert isinstance(output, kind) and len(output) == length
    assert len(model.blocks) == model.n_layers == 3 and model.d_model == 16


@pytest.mark.parametrize("architecture", CONFIGS)
def test_facts_and_size_of_every_architecture(architecture: str, tmp_path: Path) -> None:
    config = CONFIGS[architecture]()
    config.save_pretrained(tmp_path)
    source = LocalModel(name="x", path=str(tmp_path))
    facts, size = read_facts(source, tmp_path), model_size(source, tmp_path)
    assert (facts.n_layers, facts.d_model, facts.vocabulary) == (size.n_layers, size.d_model, size.vocabulary)
    assert facts.context == {"mamba": None, "mpt": 20}.get(architecture, 64)
    assert (size.heads, size.d_ff > 0) == (0 if architecture == "mamba" else 2, True)


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


def gemma3n() -> transformers.PreTrainedConfig:
    """Four streams instead of one, and blocks that use keys and values of other blocks."""
    return transformers.Gemma3nTextConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, vocab_size_per_layer_input=61,
        hidden_size_per_layer_input=4, laurel_rank=4, num_kv_shared_layers=1,
        layer_types=["sliding_attention"] + ["full_attention"] * 3, activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip


def test_an_architecture_without_one_residual_stream_is_refused_on_loading(
    tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    transformers.AutoModelForCausalLM.from_config(gemma3n()).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    source = LocalModel(name="mine", path=str(tmp_path / "model"))
    with pytest.raises(UserError, match=r"(?s)mine: .*Gemma3nForCausalLM.*evaluation=weights_only"):
        load_language_model(source, "cpu", Store(tmp_path / "cache"))


def test_blocks_that_hand_on_more_than_their_output_are_refused(llama: LanguageModel) -> None:
    """Resuming would leave out what block 0 hands to the last one."""
    llama.check_architecture()
    handed: list[Tensor] = []
    llama.blocks[0].input_layernorm.register_forward_hook(lambda _m, _a, output: handed.append(output))
    llama.blocks[2].register_forward_pre_hook(lambda _m, args: (args[0] + (handed.pop() if handed else 0), *args[1:]))
    with pytest.raises(UserError, match=r"cannot be resumed .*other losses"):
        llama.check_architecture()
