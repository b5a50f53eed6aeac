"""Models from a hub on loopback, through the real clients: what arrives, what is refused, and what the user is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sae_match.errors import UserError
from sae_match.hub import verify
from sae_match.language_model import LanguageModel, load_language_model
from sae_match.language_model.hub import HubModel
from sae_match.language_model.loading import ModelFacts
from sae_match.language_model.sources import LocalModel
from sae_match.store import Store
from tests.hub_server import Hub, set_offline

TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def files(llama: LanguageModel, tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A repository as published: two shards with an index, tokenizer, and files that no one should download."""
    root = tmp_path / "repo"
    llama.hf.save_pretrained(root, max_shard_size="12KB")
    tokenizer.save_pretrained(root)
    (root / "original").mkdir()
    (root / "original" / "params.json").write_text("{}")
    (root / "consolidated.safetensors").write_bytes(b"the same weights once more")
    assert (root / "model.safetensors.index.json").is_file()
    return root


def config(**changes: Any) -> HubModel:
    return HubModel(**({"name": "tiny", "repo_id": "owner/tiny"} | changes))


def load(tmp_path: Path, **changes: Any) -> LanguageModel:
    return load_language_model(config(**changes), "cpu", Store(tmp_path / "cache"))


def refused(tmp_path: Path, **changes: Any) -> str:
    """The message of the UserError, which names the repository and never a token."""
    with pytest.raises(UserError) as caught:
        load(tmp_path, **changes)
    link: BaseException | None = caught.value
    while link is not None:
        assert TOKEN not in str(link)
        link = link.__cause__
    assert config(**changes).repo_id in str(caught.value)
    return str(caught.value)


def test_the_published_model_is_loaded_and_nothing_else_downloaded(
    hub: Hub, files: Path, llama: LanguageModel, ids: torch.Tensor, tmp_path: Path
) -> None:
    hub.publish("owner/tiny", files)
    model = load(tmp_path)
    assert torch.equal(model.token_losses(ids), llama.token_losses(ids)) and model.key == llama.key
    assert model.tokenizer("w5 w7")["input_ids"] == [5, 7]
    assert hub.asked(r"resolve/.*/model-0000") >= 2 and not hub.asked("original|consolidated")


def test_one_file_of_weights_and_a_pinned_revision(
    hub: Hub, llama: LanguageModel, tokenizer: transformers.PreTrainedTokenizerFast, files: Path, tmp_path: Path
) -> None:
    hub.publish("owner/tiny", files)
    llama.hf.save_pretrained(tmp_path / "single")
    tokenizer.save_pretrained(tmp_path / "single")
    hub.publish("owner/tiny", tmp_path / "single", revision="step1000")
    assert load(tmp_path, revision="step1000").key == llama.key
    assert hub.asked("resolve/.*/model.safetensors$") and not hub.asked("model-0000")


def test_facts_come_without_weights(hub: Hub, files: Path, tmp_path: Path) -> None:
    hub.publish("owner/tiny", files)
    assert config().facts(Store(tmp_path)) == ModelFacts("LlamaForCausalLM", 3, 16, 64, 61)
    assert not hub.asked("safetensors$")
    with pytest.raises(UserError, match=r"model\.n_layers=26, but .*config\.json says 3"):
        config(n_layers=26).facts(Store(tmp_path))


def test_facts_of_a_multimodal_model_are_those_of_its_text_part(make_model: Any, tmp_path: Path) -> None:
    make_model("gemma3_multimodal").hf.config.save_pretrained(tmp_path)
    facts = LocalModel(name="x", path=str(tmp_path)).facts(Store(tmp_path))
    assert facts is not None
    assert (facts.n_layers, facts.d_model, facts.vocabulary) == (3, 16, 61)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "vit"}', '{"model_type": "nothing known"}'])
def test_facts_of_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="describes no language model"):
        LocalModel(name="x", path=str(tmp_path)).facts(Store(tmp_path))


def test_a_gated_model_names_its_license_and_the_token(
    hub: Hub, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("owner/tiny", files, gate=TOKEN)
    message = refused(tmp_path)
    assert "HF_TOKEN is not set" in message and "https://huggingface.co/owner/tiny" in message
    monkeypatch.setenv("HF_TOKEN", "hf_of_another_account")
    message = refused(tmp_path)
    assert "the account of HF_TOKEN has no access" in message and "hf_of_another" not in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load(tmp_path).n_layers == 3


@pytest.mark.parametrize(("fault", "words"), [
    ({"status": 503}, r"in trouble \(503\).*model=local"),
    ({"status": 401}, r"no such repository, or it is private"),
    ({"status": 403}, r"refuses access \(403\)"),
    ({"status": 429}, r"too many requests"),
    ({"status": 418}, r"status 418"),
])  # fmt: skip
def test_a_failing_hub(hub: Hub, files: Path, tmp_path: Path, fault: dict[str, Any], words: str) -> None:
    hub.publish("owner/tiny", files)
    hub.fail("owner/tiny", **fault)
    assert re.search(words, refused(tmp_path))


def test_a_token_that_the_hub_does_not_accept(
    hub: Hub, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("owner/tiny", files)
    hub.fail("owner/tiny", status=401)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "does not accept HF_TOKEN (401)" in refused(tmp_path)


def test_a_hub_that_is_down(hub: Hub, files: Path, tmp_path: Path) -> None:
    hub.publish("owner/tiny", files)
    hub.stop()
    message = refused(tmp_path)
    assert hub.url in message and "cannot be reached" in message and "model.path=DIR" in message


def test_unknown_names(hub: Hub, files: Path, tmp_path: Path) -> None:
    hub.publish("owner/tiny", files)
    assert "no such repository" in refused(tmp_path, repo_id="owner/absent")
    assert "model.revision to a branch" in refused(tmp_path, revision="absent")
    assert "owner/name" in refused(tmp_path, repo_id="a/b/c")
    (files / "config.json").unlink()
    assert "no config.json" in refused(tmp_path)


def test_a_repository_without_weights(hub: Hub, files: Path, tmp_path: Path) -> None:
    for path in files.glob("*.safetensors*"):
        path.unlink()
    hub.publish("owner/tiny", files)
    assert "neither model.safetensors nor pytorch_model.bin" in refused(tmp_path)


def test_a_shard_that_the_repository_lacks(hub: Hub, files: Path, tmp_path: Path) -> None:
    (files / "model-00002-of-00002.safetensors").unlink(missing_ok=True)
    names = sorted(set(json.loads((files / "model.safetensors.index.json").read_text())["weight_map"].values()))
    (files / names[-1]).unlink(missing_ok=True)
    hub.publish("owner/tiny", files)
    assert f"weight files are missing ({names[-1]})" in refused(tmp_path)


def test_a_cut_download_goes_on_where_it_stopped(hub: Hub, files: Path, llama: LanguageModel, tmp_path: Path) -> None:
    hub.publish("owner/tiny", files)
    fault = hub.fail("model-00001", cut_after=1000, methods=("GET",), times=1)
    assert load(tmp_path).key == llama.key and fault.times == 0


def test_a_download_that_always_breaks_off(hub: Hub, files: Path, llama: LanguageModel, tmp_path: Path) -> None:
    hub.publish("owner/tiny", files)
    hub.fail("model-00001", cut_after=0, methods=("GET",))
    assert "broke off" in refused(tmp_path)
    hub.faults.clear()
    assert load(tmp_path).key == llama.key


def test_a_changed_body_is_noticed_and_mended_as_the_message_says(
    hub: Hub, files: Path, llama: LanguageModel, tmp_path: Path
) -> None:
    """The hub client compares sizes only: a flipped bit in a weight would go unnoticed."""
    hub.publish("owner/tiny", files)
    shard = sorted(files.glob("model-*.safetensors"))[0]
    body = bytearray(shard.read_bytes())
    body[-1] ^= 0x40
    hub.fail(shard.name, body=bytes(body), methods=("GET",), times=1)
    with pytest.raises(UserError, match="the content is not what the hub announced") as caught:
        load(tmp_path)
    Path(str(caught.value).split("Delete ")[1].split(" and run")[0]).unlink()
    assert load(tmp_path).key == llama.key


def test_a_new_commit_is_fetched_and_the_old_one_still_named(
    hub: Hub, files: Path, llama: LanguageModel, make_model: Any, tmp_path: Path
) -> None:
    hub.publish("owner/tiny", files)
    assert load(tmp_path).key == llama.key
    other = make_model("llama", seed=5)
    other.hf.save_pretrained(files, max_shard_size="12KB")
    assert load(tmp_path).key == other.key


def test_offline_with_and_without_the_cache(
    hub: Hub, files: Path, llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("owner/tiny", files)
    with monkeypatch.context() as offline:
        set_offline(offline)
        assert "HF_HUB_OFFLINE" in refused(tmp_path)
    config().facts(Store(tmp_path))  # the small files only: weights are still missing
    with monkeypatch.context() as offline:
        set_offline(offline)
        assert "HF_HUB_OFFLINE" in refused(tmp_path)
    load(tmp_path)
    set_offline(monkeypatch)
    before = len(hub.requests)
    assert load(tmp_path).key == llama.key and len(hub.requests) == before
    assert "HF_HUB_OFFLINE" in refused(tmp_path, revision="other")


def test_with_the_hub_down_the_cache_serves(hub: Hub, files: Path, llama: LanguageModel, tmp_path: Path) -> None:
    hub.publish("owner/tiny", files)
    load(tmp_path)
    hub.stop()
    assert load(tmp_path).key == llama.key


def test_a_malformed_token_is_not_repeated(
    hub: Hub, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The HTTP library quotes a header that it cannot send, token included."""
    hub.publish("owner/tiny", files)
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\N{HORIZONTAL ELLIPSIS}")
    assert "HF_TOKEN is set, it holds characters that no token has" in refused(tmp_path)
    assert TOKEN not in caplog.text


def test_small_files_carry_no_checksum(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for name in ("0" * 40, "0" * 64):
        (tmp_path / "blobs" / name).write_bytes(b"x")
    verify(tmp_path / "blobs" / ("0" * 40))
    with pytest.raises(UserError, match="announced"):
        verify(tmp_path / "blobs" / ("0" * 64))
