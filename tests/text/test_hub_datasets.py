"""Hub datasets through the real `datasets` library from a hub on loopback: layouts, failures, messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sae_match.errors import UserError
from sae_match.store import Store
from sae_match.text import TokenWindows, load_windows
from sae_match.text.sources.hub import HubText
from tests.hub_server import Hub, set_offline
from tests.text.conftest import words

TOKEN = "hf_secretsecretsecret"


def config(**changes: Any) -> HubText:
    fields = {"name": "x", "repo_id": "owner/set", "documents": 3, "window_tokens": 8}
    return HubText(**(fields | {"pool": 20} | changes))


def write(path: Path, column: str = "text", rows: int = 30, first: int = 0) -> None:
    """A parquet file of documents of 10 words each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [words(10, first + 7 * i) for i in range(rows)]
    pq.write_table(pa.table({"id": list(range(rows)), column: texts}), path)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A repository of two parquet files."""
    write(tmp_path / "set" / "data" / "train-00000-of-00002.parquet")
    write(tmp_path / "set" / "data" / "train-00001-of-00002.parquet", first=3)
    return tmp_path / "set"


@pytest.fixture
def load(tmp_path: Path, make_tokenizer: Callable[..., Any]) -> Callable[..., TokenWindows]:
    """Loads windows with the word-level tokenizer and a cache of its own."""
    return lambda **changes: load_windows(config(**changes), make_tokenizer(added=True), Store(tmp_path / "cache"))


def message(load: Callable[..., TokenWindows], **changes: Any) -> str:
    """The UserError of a load; it names the repository and never the token."""
    with pytest.raises(UserError) as caught:
        load(**changes)
    text = str(caught.value)
    assert config(**changes).repo_id in text and TOKEN not in text
    return text


def test_sampled_once_and_then_read_without_the_hub(hub: Hub, files: Path, load: Callable[..., TokenWindows]) -> None:
    hub.publish("owner/set", files, kind="dataset")
    windows = load()
    assert windows.ids.shape == (3, 8) and windows.n_documents == 3
    assert (windows.ids == 1).sum(1).tolist() == [1, 1, 1] and (windows.ids[:, 0] == 1).all()
    assert re.fullmatch("[0-9a-f]{40}", windows.info["facts"]["commit"])
    hub.stop()
    again = load()
    assert torch.equal(again.ids, windows.ids) and again.info == windows.info


def test_the_sample_is_the_same_on_another_machine(hub: Hub, files: Path, tmp_path: Path, make_tokenizer: Any) -> None:
    hub.publish("owner/set", files, kind="dataset")
    keys = {load_windows(config(), make_tokenizer(), Store(tmp_path / f"cache{i}")).key for i in range(2)}
    assert len(keys) == 1
    other = load_windows(config(seed=1), make_tokenizer(), Store(tmp_path / "cache0"))
    assert other.key not in keys


def test_wikitext_as_the_hub_holds_it(hub: Hub, tmp_path: Path, load: Callable[..., TokenWindows]) -> None:
    """Configurations declared in the card, one line per row, an article over two files."""
    root = tmp_path / "wikitext"
    (root / "wikitext-103-raw-v1").mkdir(parents=True)
    head = "---\nconfigs:\n- config_name: {0}\n  data_files:\n  - split: train\n    path: {0}/train-*\n---\n"
    (root / "README.md").write_text(head.format("wikitext-103-raw-v1"))
    lines = ["", " = One = \n", "", f" {words(12)} \n", "", " = = Part = = \n", f" {words(6, 12)} \n"]
    more = [f" {words(6, 18)} \n", "", " = Two = \n", "", f" {words(14, 40)} \n"]
    for i, rows in enumerate((lines, more)):
        pq.write_table(pa.table({"text": rows}), root / "wikitext-103-raw-v1" / f"train-0000{i}-of-00002.parquet")
    hub.publish("Salesforce/wikitext", root, kind="dataset")
    windows = load(
        repo_id="Salesforce/wikitext", config_name="wikitext-103-raw-v1", join_articles=True, column="text",
        documents=2, windows_per_document=0,
    )  # fmt: skip
    assert sorted(windows.titles) == ["One", "Two"]
    text = f"{message(load, repo_id='Salesforce/wikitext', config_name='wikitext-2-v1')}"
    assert "wikitext-103-raw-v1" in text and "dataset.config_name" in text


def test_columns(hub: Hub, tmp_path: Path, load: Callable[..., TokenWindows]) -> None:
    write(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", column="content")
    hub.publish("owner/set", tmp_path / "set", kind="dataset")
    assert load().n_documents == 3
    for column, words_of_the_message in (("body", "no column 'body'. Its columns: id, content"), ("id", "holds int")):
        assert words_of_the_message in message(load, column=column)


def test_jsonl_and_one_glob_of_it(hub: Hub, tmp_path: Path, load: Callable[..., TokenWindows]) -> None:
    (tmp_path / "set").mkdir()
    for name, first in (("a", 0), ("b", 50)):
        rows = "".join(f'{{"code": "{words(10, first + i)}"}}\n' for i in range(5))
        (tmp_path / "set" / f"{name}.jsonl").write_text(rows)
    hub.publish("owner/set", tmp_path / "set", kind="dataset")
    windows = load(data_files="b.jsonl", documents=5)
    assert windows.ids[:, 1].min() >= 52 and windows.info["facts"]["files"] == "b.jsonl"
    assert "absent.jsonl" in message(load, data_files="absent.jsonl")


def test_a_script_is_not_run_and_the_fallback_is_read_aloud(
    hub: Hub, files: Path, tmp_path: Path, load: Callable[..., TokenWindows], caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "script"
    script.mkdir()
    (script / "set.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    hub.publish("owner/set", script, kind="dataset")
    hub.publish("owner/set", files, kind="dataset", revision="refs/pr/18")
    text = message(load)
    assert "loading script" in text and "dataset.data_files" in text
    fallback = "hf://datasets/owner/set@refs%2Fpr%2F18/data/*.parquet"
    windows = load(fallback_files=fallback)
    assert windows.n_documents == 3 and windows.info["facts"]["files"] == fallback
    assert "loading script, which is not run" in caplog.text
    assert load(revision="refs/pr/18").n_documents == 3
    assert not (tmp_path / "executed").exists()


def test_too_few_documents_say_how_many_there_are(hub: Hub, files: Path, load: Callable[..., TokenWindows]) -> None:
    hub.publish("owner/set", files, kind="dataset")
    text = message(load, window_tokens=12)
    assert "0 of 20 documents have at least 12 tokens, but 3 were asked for" in text
    assert "dataset.window_tokens" in text and "raise dataset.pool (now 20)" in text


def test_names_that_the_hub_does_not_know(hub: Hub, files: Path, load: Callable[..., TokenWindows]) -> None:
    hub.publish("owner/set", files, kind="dataset")
    assert "no such repository" in message(load, repo_id="owner/absent")
    assert "dataset.revision to a branch" in message(load, revision="absent")
    assert "train" in message(load, split="absent")
    hub.publish("owner/set", files.parent / "nothing", kind="dataset")
    (files.parent / "nothing").mkdir()
    assert "cannot be read" in message(load)


def test_a_gated_dataset_names_its_license_and_the_token(
    hub: Hub, files: Path, load: Callable[..., TokenWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("owner/set", files, kind="dataset", gate=TOKEN)
    text = message(load)
    assert "HF_TOKEN is not set" in text and "https://huggingface.co/datasets/owner/set" in text
    monkeypatch.setenv("HF_TOKEN", "hf_of_another_account")
    assert "the account of HF_TOKEN has no access" in message(load)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load().n_documents == 3


@pytest.mark.parametrize(("fault", "words_of_the_message"), [
    ({"status": 503}, r"in trouble \(503\)|cannot be reached"),
    ({"status": 403}, r"refuses access \(403\)"),
    ({"status": 429}, r"too many requests"),
    ({"status": 503, "pattern": "parquet"}, r"in trouble \(503\)"),
    ({"cut_after": 100, "pattern": "parquet", "methods": ("GET",)}, "broke off"),
])  # fmt: skip
def test_a_failing_hub(
    hub: Hub, files: Path, load: Callable[..., TokenWindows], fault: dict[str, Any], words_of_the_message: str
) -> None:
    hub.publish("owner/set", files, kind="dataset")
    hub.fail(**({"pattern": "owner/set"} | fault))
    assert re.search(words_of_the_message, message(load))


def test_a_cut_stream_goes_on(hub: Hub, files: Path, load: Callable[..., TokenWindows]) -> None:
    hub.publish("owner/set", files, kind="dataset")
    fault = hub.fail("parquet", cut_after=50, methods=("GET",), times=1)
    assert load().n_documents == 3 and fault.times == 0


def test_a_hub_that_is_down_and_offline_mode(
    hub: Hub, files: Path, load: Callable[..., TokenWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("owner/set", files, kind="dataset")
    with monkeypatch.context() as offline:
        set_offline(offline)
        text = message(load)
        assert "HF_HUB_OFFLINE" in text and "dataset=wiki" in text
    windows = load()
    with monkeypatch.context() as offline:
        set_offline(offline)
        assert load().key == windows.key
    hub.stop()
    assert load().key == windows.key
    text = message(load, seed=7)
    assert "cannot be reached" in text and "dataset.path=FILE" in text
