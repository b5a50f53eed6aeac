"""A tiny local language model, local text and SAEs that fit it: the whole pipeline without the embedded default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from sae_match.config.compose import config_directory, register_schemas, to_dataclass
from sae_match.config.schema import Config
from sae_match.saes import SparseAutoencoder, save_native
from tests.builders import identity_sae, permuted, random_sae

D_MODEL, LAYERS, WORDS = 8, 4, 40


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with 4 blocks and d_model 8, and a word-level tokenizer without BOS."""
    directory = tmp_path_factory.mktemp("model")
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


@pytest.fixture(scope="session")
def text_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten documents of 30 random words."""
    directory = tmp_path_factory.mktemp("text")
    generator = torch.Generator().manual_seed(4)
    for i in range(10):
        words = torch.randint(WORDS, (30,), generator=generator).tolist()
        (directory / f"d{i}.txt").write_text(" ".join(f"w{w}" for w in words), encoding="utf-8")
    return directory


def _save(root: Path, saes: dict[str, SparseAutoencoder]) -> Path:
    for name, sae in saes.items():
        save_native(sae, root / f"{name}.safetensors")
    return root


@pytest.fixture
def perfect_saes(tmp_path: Path) -> Path:
    """SAEs of all layers that reconstruct everything, with their features in another order in each layer."""
    orders = [torch.randperm(2 * D_MODEL, generator=torch.Generator().manual_seed(i)) for i in range(LAYERS)]
    saes = {f"layer_{i:02d}": permuted(identity_sae(D_MODEL), order) for i, order in enumerate(orders)}
    return _save(tmp_path / "perfect", saes)


@pytest.fixture
def random_saes(tmp_path: Path) -> Path:
    """Independent random SAEs, and a second seed of layer 1."""
    saes = {f"layer_{i:02d}": random_sae(width=24, d=D_MODEL, seed=i) for i in range(LAYERS)}
    return _save(tmp_path / "random", saes | {"layer_01_seed_1": random_sae(width=24, d=D_MODEL, seed=99)})


@pytest.fixture
def configured(model_directory: Path, text_directory: Path, tmp_path: Path) -> Callable[..., Config]:
    """A maker of full-evaluation configurations over the tiny model."""

    def make(saes: Path, *overrides: str, output: str = "out") -> Config:
        register_schemas()
        fixed = [
            "sae=native", f"sae.root={saes}", "sae.ceiling_filename='layer_{layer:02d}_seed_1.safetensors'",
            "model=local", f"model.path={model_directory}", "dataset=local", f"dataset.path={text_directory}",
            "dataset.documents=10", "dataset.window_tokens=12", "dataset.windows_per_document=2",
            "layers.first=0", "layers.last=3", "tracking=none", "evaluation.bootstrap_samples=50", "device=cpu",
            f"paths.output_dir={tmp_path / output}", f"paths.cache_dir={tmp_path / 'cache'}", "progress=false",
        ]  # fmt: skip
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            return to_dataclass(compose("config", [*fixed, *overrides]), Config)

    return make
