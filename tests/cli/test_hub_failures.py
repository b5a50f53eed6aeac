"""The real command against a hub on loopback: a full job, and every failure on one screen without a token in sight."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from sae_match.saes import save_native
from tests.builders import random_sae, scientific
from tests.command import Completed, run_command
from tests.hub_server import Hub, set_offline

D_MODEL, LAYERS, WORDS = 8, 3, 40
TOKEN = "hf_secretsecretsecret"

Command = Callable[..., Completed]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 2 in small: soft-capping, sliding windows, a tokenizer that adds BOS; a dataset; SAEs of three layers."""
    root = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=WORDS + 2, hidden_size=D_MODEL, intermediate_size=16, num_hidden_layers=LAYERS, head_dim=4,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, sliding_window=4, bos_token_id=1,
    )  # fmt: skip
    transformers.Gemma2ForCausalLM(config).save_pretrained(root / "model")
    vocabulary = {"<pad>": 0, "<bos>": 1} | {f"w{i}": i + 2 for i in range(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<pad>")
    fast.save_pretrained(root / "model")
    draw = torch.randint(WORDS, (12, 40), generator=torch.Generator().manual_seed(1)).tolist()
    (root / "text" / "data").mkdir(parents=True)
    texts = pa.table({"text": [" ".join(f"w{w}" for w in row) for row in draw]})
    pq.write_table(texts, root / "text" / "data" / "train-00000-of-00001.parquet")
    for layer in range(LAYERS):
        save_native(random_sae(width=24, d=D_MODEL, seed=layer), root / "saes" / f"layer_{layer:02d}.safetensors")
    return root


@pytest.fixture
def command(hub: Hub, published: Path, tmp_path: Path) -> Command:
    """Runs `sae-match` on the published model, text and SAEs."""
    arguments = [
        "sae=native", f"sae.root={published / 'saes'}", "layers.first=0", "layers.last=2", "model=gemma_2_2b",
        "model.repo_id=google/tiny", "model.n_layers=null", "model.d_model=null", "model.dtype=float32",
        "dataset=hub", "dataset.repo_id=owner/text", "dataset.documents=8", "dataset.window_tokens=16",
        "dataset.windows_per_document=2", "tracking=none", "device=cpu", "paths.output_dir=out", "progress=false",
        "evaluation.bootstrap_samples=20",
    ]  # fmt: skip

    def run(*more: str, token: str = "") -> Completed:
        environment = {"SAE_MATCH_CACHE": str(tmp_path / "cache"), "HF_TOKEN": token}
        return run_command(*arguments, *more, cwd=tmp_path, env=environment)

    return run


def refused(done: Completed, out: Path) -> str:
    """The one screen of a failed job; neither it nor anything in the record holds the token."""
    text = done.err + done.out
    assert done.code == 2, text
    assert "Traceback" not in text
    assert json.loads((out / "status.json").read_text())["state"] == "failed"
    for path in (p for p in out.rglob("*") if p.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in text
    return text


def test_a_job_from_a_gated_hub_and_then_without_it(
    hub: Hub, published: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("google/tiny", published / "model", gate=TOKEN)
    hub.publish("owner/text", published / "text", kind="dataset")
    text = refused(command(), tmp_path / "out")
    assert "https://huggingface.co/google/tiny" in text and "HF_TOKEN is not set" in text
    assert not hub.asked("resolve"), "the gate is met before anything is downloaded"
    done = command(token=TOKEN)
    assert done.code == 0, done.err
    windows = json.loads((tmp_path / "out" / "text.json").read_text())
    assert windows["windows"] == 16 and windows["recipe"]["bos"] == 1
    assert (tmp_path / "out" / "pairs.csv").stat().st_size > 0
    for path in (p for p in (tmp_path / "out").rglob("*") if p.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in done.out + done.err
    hub.stop()
    set_offline(monkeypatch)
    again = command("paths.output_dir=again")
    assert again.code == 0, again.err
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("out", "again"))
    assert scientific(first) == scientific(second)


def test_nothing_of_it_offline(hub: Hub, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_offline(monkeypatch)
    text = refused(command(), tmp_path / "out")
    assert "HF_HUB_OFFLINE" in text and "model.path=DIR" in text and not hub.requests
