"""A job over two models with different tokenizers. In both, attention is off, so that a residual depends on its own
token alone, and the other tokenizer cuts "w12" into "w" and "12", of which the second has the first model's embedding:
wherever both have read the same text their residuals are equal, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, Whitespace

from sae_match import Permutation
from sae_match.saes import load_native, save_native
from tests.builders import permuted
from tests.command import run_command
from tests.tiny_setting import WORDS

WIDTH, WINDOW, DOCUMENTS = 24, 12, 6


@pytest.fixture
def models(model_directory: Path, tmp_path: Path) -> dict[str, Path]:
    """The tiny model without attention, and the same over parts of words."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_directory)
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
        model.save_pretrained(tmp_path / "words")
        # [UNK], w, 0, 1, ... in place of [UNK], w0, w1, ...
        embeddings[2 : WORDS + 2] = embeddings[1 : WORDS + 1].clone()
        embeddings[1] = torch.linspace(-2, 2, embeddings.shape[1])
        model.save_pretrained(tmp_path / "parts")
    for path in model_directory.glob("tokenizer*"):
        (tmp_path / "words" / path.name).write_bytes(path.read_bytes())
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "w": 1} | {f"{i}": i + 2 for i in range(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Sequence([Whitespace(), Split(Regex(r"\d+"), "isolated")])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(
        tmp_path / "parts"
    )
    return {name: tmp_path / name for name in ("words", "parts")}


def test_partners_are_found_where_both_models_have_read_the_same(
    models: dict[str, Path], random_saes: Path, text_directory: Path, tmp_path: Path
) -> None:
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(1))
    sae = load_native(random_saes / "layer_01.safetensors")
    save_native(permuted(sae, order), tmp_path / "other" / "layer_01.safetensors")
    job = tmp_path / "job"
    done = run_command(
        "experiment=pairs_smollm2_gemma", "sae=native", f"sae.root={random_saes}",
        "sae@pairs.sae=native", f"pairs.sae.root={tmp_path / 'other'}", "model=local", f"model.path={models['words']}",
        f"pairs.model.path={models['parts']}", "layers.list=null", "layers.first=1", "layers.last=1",
        "~pairs.layers", "dataset=local", f"dataset.path={text_directory}", f"dataset.documents={DOCUMENTS}",
        f"dataset.window_tokens={WINDOW}", "evaluation.fit_documents=4", "evaluation.bootstrap_samples=20",
        "evaluation.min_count=1", "judging=offline", "judging.pairs=4",
        "evaluation/controls=[vanilla,random,correlation,both]", "device=cpu", "tracking=none",
        f"hydra.run.dir={job}", f"paths.cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    # Twelve tokens of the second model are six words; of the first model's the first is a sink.
    text = json.loads((job / "text.json").read_text())
    assert text["compared_positions"] == 5 * text["windows"]
    assert text["compared_shares"] == [5 / (WINDOW - 1)] * 2
    permutation = Permutation.load(job / "permutations" / "layer_01_to_01.safetensors")
    assert torch.equal(permutation.indices[order], torch.arange(WIDTH))
    pairs = pd.read_csv(job / "pairs.csv").set_index(["metric", "variant"])["value"]
    assert pairs["matching_score", "matched"] == pairs["matching_score", "both"] == 1.0
    # Fitted on 20 positions, on which not every feature fires.
    assert pairs["matching_score", "correlation"] > 0.8 and pairs["matching_score", "random"] < 0.5
    assert pairs["explained_variance", "stream_map"] > 0.999
    assert pairs["l0", "sae"] == pairs["l0", "sae_b"] > 0
    # What needs every token of both is left out, and named; contexts are the first model's tokens for both.
    assert not {"delta_loss", "loss"} & {metric for metric, _ in pairs.index}
    (note,) = [one for one in json.loads((job / "status.json").read_text())["warnings"] if "different tokens" in one]
    assert "45.5% of the tokens of gemma3_270m" in note and "Token losses are left out" in note
    examples = pd.read_csv(job / "example_pairs.csv")
    assert (examples["contexts"] == examples["partner_contexts"]).all()
    assert examples["contexts"].str.contains("«w").all()
