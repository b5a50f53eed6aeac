"""Models that accelerate spreads over main memory and disk behave like whole ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from sae_match.language_model import LanguageModel, load_language_model
from sae_match.language_model.model import execution_device
from sae_match.language_model.sources import LocalModel
from sae_match.store import Store


@pytest.fixture(params=["gemma2", "gpt2"])
def saved(
    request: pytest.FixtureRequest,
    make_model: Callable[..., LanguageModel],
    tokenizer: transformers.PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Path:
    model = make_model(request.param)
    model.hf.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def spread(path: Path, cache: Path) -> LanguageModel:
    """So little memory that blocks have to go to disk."""
    return load_language_model(_config(path, device_map="auto", max_memory={"cpu": "9KB"}), "cpu", Store(cache))


def _config(path: Path, **changes: object) -> LocalModel:
    return LocalModel(
        name="tiny",
        path=str(path),
        attn_implementation="eager",
        **changes,  # type: ignore[arg-type]
    )


def test_offloaded_blocks_give_the_same_streams_and_losses(saved: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    whole, model = load_language_model(_config(saved), "cpu", Store(tmp_path)), spread(saved, tmp_path / "cache")
    assert "disk" in model.hf.hf_device_map.values(), "the test needs weights on disk"
    assert any(parameter.device.type == "meta" for parameter in model.hf.parameters())
    assert model.device.type == "cpu"
    assert torch.equal(model.token_losses(ids), whole.token_losses(ids))
    ours, theirs = model.resid_post(ids, [0, 2]), whole.resid_post(ids, [0, 2])
    for layer in (0, 2):
        assert torch.equal(ours[layer], theirs[layer])
    other = torch.randn(*ids.shape, whole.d_model, generator=torch.Generator().manual_seed(1))
    for layer in range(3):
        assert torch.equal(model.token_losses_from(layer, other, ids), whole.token_losses_from(layer, other, ids))
    assert torch.equal(model.token_losses(ids), whole.token_losses(ids)), "the model is as it was"


def test_the_key_is_the_contents_wherever_it_lies(saved: Path, tmp_path: Path) -> None:
    assert spread(saved, tmp_path / "cache").key == load_language_model(_config(saved), "cpu", Store(tmp_path)).key


def test_residuals_follow_their_block(llama: LanguageModel) -> None:
    """accelerate notes a device on each block it places; the residual that replaces its output has to go there."""

    class Hook:
        execution_device: object = 1

    class Chain:
        hooks = (object(), Hook())

    block = nn.Linear(2, 2)
    assert execution_device(block) == torch.device("cpu")
    block._hf_hook = Chain()  # type: ignore[assignment]
    assert execution_device(block) == torch.device("cuda:1")
    Hook.execution_device = "meta"
    llama.blocks[1]._hf_hook = Hook()  # type: ignore[assignment]
    seen: list[torch.device] = []
    llama.blocks[2].register_forward_pre_hook(lambda _block, args: seen.append(args[0].device))
    with pytest.raises((RuntimeError, NotImplementedError, ValueError)):  # the next block cannot compute with it here
        llama.token_losses_from(1, torch.zeros(1, 3, 16), torch.ones(1, 3, dtype=torch.long))
    assert seen[-1] == torch.device("meta")


def test_whole_models_need_no_accelerate(saved: Path, tmp_path: Path) -> None:
    model = load_language_model(_config(saved), "cpu", Store(tmp_path))
    assert not hasattr(model.hf, "hf_device_map") or set(model.hf.hf_device_map.values()) == {"cpu"}
    assert model.device == torch.device("cpu")
