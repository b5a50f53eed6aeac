"""A tiny language model and text on disk, for jobs with a full evaluation that take a second."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from sae_match.plan import Plan, make_plan
from sae_match.store import Store
from sae_match.study import Study

D_MODEL, LAYERS, WORDS = 8, 4, 40


def planned(study: Study) -> Plan:
    """The plan of a job with the store that its configuration names."""
    return make_plan(study, Store(study.paths.cache_dir))


def build_model(directory: Path) -> Path:
    """A random Llama with 4 blocks and d_model 8, and a word-level tokenizer without BOS."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=WORDS + 2, hidden_size=D_MODEL, intermediate_size=16, num_hidden_layers=LAYERS,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    vocabulary = {"[UNK]": 0} | {f"w{i}": i + 1 for i in range(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(directory)
    return directory


def build_text(directory: Path) -> Path:
    """Ten documents of 30 random words."""
    generator = torch.Generator().manual_seed(4)
    for i in range(10):
        words = torch.randint(WORDS, (30,), generator=generator).tolist()
        (directory / f"d{i}.txt").write_text(" ".join(f"w{w}" for w in words), encoding="utf-8")
    return directory
