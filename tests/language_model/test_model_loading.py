"""Loading from a directory or the hub: the right weights, or one clear message."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from sae_match.errors import UserError
from sae_match.language_model import LanguageModel, load_language_model, resolve_device
from sae_match.language_model.forward_pass import find_blocks
from sae_match.language_model.sources import LocalModel
from sae_match.store import Store


@pytest.fixture
def saved(llama: LanguageModel, tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A model directory as `save_pretrained` leaves it."""
    llama.hf.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def local(path: Path, **changes: Any) -> LocalModel:
    return LocalModel(name="tiny", path=str(path), **changes)


def test_local_model_is_the_saved_one(llama: LanguageModel, saved: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    model = load_language_model(local(saved), "cpu", Store(tmp_path))
    assert (model.name, model.n_layers, model.d_model, model.device.type) == ("tiny", 3, 16, "cpu")
    assert torch.equal(model.token_losses(ids), llama.token_losses(ids))
    assert model.key == llama.key, "the key is the content's, not the path's"
    assert model.tokenizer("w5 w7")["input_ids"] == [5, 7]
    assert not model.hf.training and not any(p.requires_grad for p in model.hf.parameters())


def test_dtype_and_attention_are_obeyed(saved: Path, tmp_path: Path) -> None:
    model = load_language_model(local(saved, dtype="bfloat16", attn_implementation="eager"), "cpu", Store(tmp_path))
    assert model.hf.dtype == torch.bfloat16 and model.hf.config._attn_implementation == "eager"
    with pytest.raises(ValidationError, match="dtype"):
        local(saved, dtype="int8")
    with pytest.raises(UserError, match="attn_implementation"):
        load_language_model(local(saved, attn_implementation="nonsense"), "cpu", Store(tmp_path))


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: no config\.json"):
        load_language_model(local(tmp_path / "absent"), "cpu", Store(tmp_path))


@pytest.mark.parametrize("name, content", [
    ("config.json", b"{"),
    ("config.json", b'{"model_type": "no such thing"}'),
    ("config.json", b'{"model_type": "vit"}'),
    ("model.safetensors", None),
    ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "),
    ("model.safetensors", b"cut"),
    ("tokenizer.json", b"{"),
])  # fmt: skip
def test_broken_directories(saved: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    (saved / name).unlink() if content is None else (saved / name).write_bytes(content)
    with pytest.raises(UserError, match="model tiny: ") as caught:
        load_language_model(local(saved), "cpu", Store(tmp_path))
    assert str(saved) in str(caught.value)


def test_absent_weights_are_not_filled_with_random_numbers(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of LlamaForCausalLM, such as model.layers.1.mlp.up_proj"):
        load_language_model(local(saved), "cpu", Store(tmp_path))


def test_code_in_a_checkpoint_is_not_run(saved: Path, tmp_path: Path) -> None:
    (saved / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}'
    )
    (saved / "own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UserError, match="trust_remote_code"):
        load_language_model(local(saved), "cpu", Store(tmp_path))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match="no CUDA device"):
            resolve_device(name)
    with pytest.raises(UserError, match="choose auto, cpu or cuda"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


class _Stack(nn.Module):
    def __init__(self, **lists: int) -> None:
        super().__init__()
        for name, length in lists.items():
            self.add_module(name, nn.ModuleList(nn.Linear(1, 1) for _ in range(length)))


def fake(decoder: nn.Module | None, n_layers: int) -> Any:
    config = SimpleNamespace(num_hidden_layers=n_layers)
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config, get_decoder=lambda: decoder)


def test_blocks_are_the_one_list_of_the_right_length() -> None:
    decoder = _Stack(embeddings=2, layers=4)
    decoder.layers[0].experts = nn.ModuleList(nn.Linear(1, 1) for _ in range(4))
    assert find_blocks(fake(decoder, 4)) is decoder.layers


@pytest.mark.parametrize(
    "decoder, found", [(_Stack(layers=3), "none"), (_Stack(a=4, b=4), r"\['a', 'b'\]"), (None, "no decoder")]
)
def test_unknown_layouts_are_refused(decoder: nn.Module | None, found: str) -> None:
    with pytest.raises(UserError, match=found):
        find_blocks(fake(decoder, 4))
