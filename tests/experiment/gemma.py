"""The paper's setting in miniature on a loopback hub: a gated random Gemma 2, its SAEs, and OpenWebText."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sae_match.saes import SparseAutoencoder
from sae_match.saes.formats.gemma_scope import PAPER_L0S_2B_16K
from tests.builders import permuted, random_sae
from tests.hub_server import Hub

BLOCKS, D_MODEL, WIDTH, WINDOW = 4, 32, 80, 24
TOKEN = "hf_accepted_the_license"
MODEL, SAES, TEXT = "google/gemma-2-2b", "google/gemma-scope-2b-pt-res", "Skylion007/openwebtext"
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
BOS = 2
OVERRIDES = [
    "experiment=gemma_2_2b", "layers.first=0", f"layers.last={BLOCKS - 1}", f"model.n_layers={BLOCKS}",
    f"model.d_model={D_MODEL}", f"sae.d_model={D_MODEL}", f"sae.n_layers={BLOCKS}",
    "dataset.documents=8", f"dataset.window_tokens={WINDOW}", "tracking=none",
    "evaluation.bootstrap_samples=50", "evaluation.min_count=1", "device=cpu", "progress=false",
]  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Directories behind the hub's three repositories, and the planted permutations by first layer."""

    model: Path
    saes: Path
    text: Path
    planted: dict[int, npt.NDArray[np.int64]]

    def publish(self, hub: Hub, gate: str | None = TOKEN) -> None:
        """Serve all three; the model only to whoever sends `gate`."""
        hub.publish(MODEL, self.model, gate=gate)
        hub.publish(SAES, self.saes)
        hub.publish(TEXT, self.text, kind="dataset")


def build(root: Path) -> Setting:
    """Write the whole setting below `root`."""
    texts = documents(40)
    tokenizer = train_tokenizer(texts)
    save_model(root / "model", tokenizer)
    planted = save_saes(root / "saes")
    (root / "text" / "data").mkdir(parents=True)
    pq.write_table(pa.table({"text": texts}), root / "text" / "data" / "train-00000-of-00001.parquet")
    return Setting(root / "model", root / "saes", root / "text", planted)


def documents(n: int) -> list[str]:
    """Random sentences of some invented words."""
    generator = np.random.default_rng(7)
    words = ["".join(generator.choice(list("abcdefghij"), 4)) for _ in range(60)]
    return [" ".join(generator.choice(words, 60)) + ". Ünïcode" for _ in range(n)]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-pair encoding with Gemma's pipeline: spaces as a letter, bytes for the unknown, BOS in front."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    single_bytes = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL + single_bytes, show_progress=False)
    tokenizer.train_from_iterator([text.replace(" ", "▁") for text in texts], trainer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    return tokenizer


def save_model(directory: Path, tokenizer: Tokenizer) -> None:
    """A random Gemma 2 with what Gemma 2 has: soft-capping twice, sliding windows, scaled tied embeddings."""
    torch.manual_seed(5)
    config = transformers.Gemma2Config(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=D_MODEL, intermediate_size=48, num_hidden_layers=BLOCKS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, sliding_window=8,
        attn_logit_softcapping=50.0, final_logit_softcapping=30.0, query_pre_attn_scalar=8,
        pad_token_id=0, eos_token_id=1, bos_token_id=BOS, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory, max_shard_size="60KB")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    fast.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "GemmaTokenizer"}))


def save_saes(root: Path) -> dict[int, npt.NDArray[np.int64]]:
    """Gemma Scope files; each layer is the one before in another order, a little changed."""
    generator = torch.Generator().manual_seed(8)
    sae, planted = random_sae(WIDTH, D_MODEL, seed=1), {}
    for layer in range(BLOCKS):
        if layer:
            order = torch.randperm(WIDTH, generator=generator)
            sae = changed(permuted(sae, order), generator)
            planted[layer - 1] = torch.argsort(order).numpy()
        path = root / f"layer_{layer}" / "width_16k" / f"average_l0_{PAPER_L0S_2B_16K[layer]}" / "params.npz"
        path.parent.mkdir(parents=True)
        np.savez(path, **{name: value.numpy() for name, value in sae.parameters().items()})
    return planted


def changed(sae: SparseAutoencoder, generator: torch.Generator) -> SparseAutoencoder:
    """The same features, each moved a little; decoder rows keep unit norm."""
    moved = sae.W_dec + 0.03 * torch.randn(sae.W_dec.shape, generator=generator)
    return SparseAutoencoder(
        W_enc=sae.W_enc + 0.03 * torch.randn(sae.W_enc.shape, generator=generator),
        b_enc=sae.b_enc,
        W_dec=torch.nn.functional.normalize(moved, dim=1),
        b_dec=sae.b_dec,
        threshold=sae.threshold * 1.05,
    )
