"""Jobs that read model and text from a hub: what is refused before weights come, and what asks for nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers

from sae_match.errors import UserError
from sae_match.experiment import run
from sae_match.study import Study
from tests.hub_server import Hub

Configured = Callable[..., Study]
FROM_THE_HUB = ["model=hub", "model.repo_id=owner/model", "dataset=hub", "dataset.repo_id=owner/text"]


@pytest.fixture
def published(hub: Hub, model_directory: Path, text_directory: Path, tmp_path: Path) -> Hub:
    """The hub with the tiny model and its texts."""
    hub.publish("owner/model", model_directory)
    (tmp_path / "text").mkdir()
    texts = [path.read_text(encoding="utf-8") for path in sorted(text_directory.glob("*.txt"))]
    pq.write_table(pa.table({"text": texts}), tmp_path / "text" / "train.parquet")
    hub.publish("owner/text", tmp_path / "text", kind="dataset")
    return hub


def test_a_whole_job(published: Hub, configured: Configured, random_saes: Path) -> None:
    result = run(configured(random_saes, *FROM_THE_HUB))
    assert "matching_score" in result.metrics and published.asked("model.safetensors") >= 1


@pytest.mark.parametrize(("shape", "message"), [
    ({"hidden_size": 12}, "read d_model=8, but the model hub has d_model=12"),
    ({"hidden_size": 8, "num_hidden_layers": 3}, r"layers\.last=3: hub \(.*\) has blocks 0\.\.2"),
    ({"hidden_size": 8, "max_position_embeddings": 8}, "window_tokens=12: the context of hub is 8 tokens"),
])  # fmt: skip
def test_a_model_that_does_not_fit_is_refused_before_its_weights(
    published: Hub, configured: Configured, random_saes: Path, tmp_path: Path, shape: dict[str, int], message: str
) -> None:
    transformers.LlamaConfig(**({"num_hidden_layers": 4, "num_attention_heads": 2} | shape)).save_pretrained(
        tmp_path / "other"
    )
    (tmp_path / "other" / "model.safetensors").write_bytes(b"never asked for")
    published.publish("owner/model", tmp_path / "other")
    with pytest.raises(UserError, match=message):
        run(configured(random_saes, *FROM_THE_HUB))
    assert not published.asked(r"safetensors|text/resolve")


def test_gemma_does_not_fit_into_float16(
    published: Hub, configured: Configured, random_saes: Path, tmp_path: Path
) -> None:
    shape = {"num_hidden_layers": 4, "hidden_size": 8, "num_attention_heads": 2, "head_dim": 4}
    config = transformers.Gemma3TextConfig(**shape, architectures=["Gemma3ForCausalLM"])
    config.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"never asked for")
    published.publish("owner/model", tmp_path / "other")
    with pytest.raises(UserError, match=r"float16: Gemma's residual stream overflows it"):
        run(configured(random_saes, *FROM_THE_HUB, "model.dtype=float16"))


def test_a_wrong_column_is_told_before_matching(published: Hub, configured: Configured, random_saes: Path) -> None:
    cfg = configured(random_saes, *FROM_THE_HUB, "dataset.column=body")
    with pytest.raises(UserError, match=r"no column 'body'\. Its columns: text"):
        run(cfg)
    assert not (Path(cfg.paths.output_dir) / "permutations").exists()


def test_weights_alone_ask_the_hub_for_nothing(hub: Hub, configured: Configured, random_saes: Path) -> None:
    run(configured(random_saes, *FROM_THE_HUB, "evaluation=weights_only"))
    assert not hub.requests
