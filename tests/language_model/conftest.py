"""Tiny random language models of several architectures, and token windows for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

from sae_match.language_model import LanguageModel

VOCAB = 61
LAYERS = 3
WIDTH = 16

_SIZES = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
_COMMON = {"vocab_size": VOCAB, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _gemma2() -> transformers.PreTrainedConfig:
    """Everything that a resumed pass could lose: sliding windows, soft-capping twice, scaled embeddings."""
    return transformers.Gemma2Config(
        **_SIZES,
        **_COMMON,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        attn_logit_softcapping=0.5,
        final_logit_softcapping=0.5,
        attn_implementation="eager",
    )


def _gemma3(**changes: object) -> transformers.Gemma3TextConfig:
    """Sliding windows with their own rotary base, query and key norms."""
    return transformers.Gemma3TextConfig(
        **(_SIZES | _COMMON | changes),
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=3,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )


def _gemma3_multimodal() -> transformers.PreTrainedConfig:
    """As Gemma 3 4B and larger: the text model is one part, and the vision tower has as many blocks as it."""
    vision = transformers.SiglipVisionConfig(
        hidden_size=12, intermediate_size=8, num_hidden_layers=LAYERS, num_attention_heads=2, image_size=8, patch_size=4
    )
    return transformers.Gemma3Config(
        text_config=_gemma3(), vision_config=vision, mm_tokens_per_image=4, image_token_id=60, boi_token_id=58,
        eoi_token_id=59,
    )  # fmt: skip


CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES, **_COMMON, num_key_value_heads=1, tie_word_embeddings=True),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3_multimodal": _gemma3_multimodal,
    "qwen2": lambda: transformers.Qwen2Config(**_SIZES, **_COMMON, num_key_value_heads=1),
    "phi": lambda: transformers.PhiConfig(**_SIZES, **_COMMON, partial_rotary_factor=0.5),
    # Its blocks return tuples.
    "gptj": lambda: transformers.GPTJConfig(
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=2,
        rotary_dim=4,
        n_positions=64,
        vocab_size=VOCAB,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=64, vocab_size=VOCAB, bos_token_id=1, eos_token_id=2
    ),
    # Its blocks return lists.
    "gpt1": lambda: transformers.OpenAIGPTConfig(
        n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=64, vocab_size=VOCAB
    ),
    # Its blocks return pairs, and one has attention where the others have a state space.
    "bamba": lambda: transformers.BambaConfig(
        **_SIZES,
        **_COMMON,
        num_key_value_heads=1,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=4,
        attn_layer_indices=[1],
    ),
    # No attention at all.
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=4
    ),
    # Its own name for the context.
    "mpt": lambda: transformers.MptConfig(d_model=WIDTH, n_heads=2, n_layers=LAYERS, max_seq_len=20, vocab_size=VOCAB),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_SIZES, **_COMMON),
    # Its blocks return tuples; every other layer looks back two tokens only.
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_heads=2,
        attention_types=[[["local", "global", "local"], 1]],
        window_size=2,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


def build(architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model with weights large enough that every part of it shows in the losses."""
    torch.manual_seed(seed)
    hf = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture]())
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return LanguageModel(hf.to(dtype), tokenizer=None, name=f"tiny-{architecture}")


def build_pass_through(*silent: int) -> LanguageModel:
    """A model whose blocks of these numbers add nothing to the residual stream."""
    made = build("llama", seed=1)
    with torch.no_grad():
        for number in silent:
            for name, parameter in made.blocks[number].named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.zero_()
    return made


@dataclass
class Windows:
    """Stands in for `TokenWindows`."""

    ids: Tensor
    document: Tensor
    key: str


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """One tiny model per architecture."""
    return build(request.param)


@pytest.fixture
def make_model() -> Callable[..., LanguageModel]:
    """Builds a tiny model of a named architecture."""
    return build


@pytest.fixture
def llama() -> LanguageModel:
    """The tiny Llama."""
    return build("llama")


@pytest.fixture
def ids() -> Tensor:
    """Three windows of ten tokens."""
    return torch.randint(3, VOCAB, (3, 10), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def windows() -> Windows:
    """Seven windows of six tokens."""
    ids = torch.randint(3, VOCAB, (7, 6), generator=torch.Generator().manual_seed(2))
    return Windows(ids, torch.arange(7), "seven windows")


@pytest.fixture
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A word-level tokenizer over the tiny vocabulary."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")
