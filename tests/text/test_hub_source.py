"""Hub datasets, with a stand-in for `load_dataset`: nothing here touches the network."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from datasets import Dataset
from huggingface_hub import HfApi
from pydantic import ValidationError

from sae_match.errors import UserError
from sae_match.text.source import Document
from sae_match.text.sources.hub import MIN_POOL, POOL_FACTOR, HubText

FILES = "hf://datasets/owner/name@refs%2Fpr%2F18/data/*.parquet"
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Make load_dataset answer its calls with the given data or errors, in turn; returns the list of calls."""

    def install(*answers: dict[str, list[Any]] | Exception) -> Calls:
        calls: Calls = []

        def load_dataset(*args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            answer = answers[len(calls) - 1]
            if isinstance(answer, Exception):
                raise answer
            return Dataset.from_dict(answer).to_iterable_dataset()

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))
        return calls

    return install


def config(**changes: Any) -> HubText:
    return HubText(**({"name": "x", "repo_id": "owner/name"} | changes))


def read(**changes: Any) -> list[Document]:
    return list(config(**changes).read({}))


def test_rows_are_streamed_with_the_configured_names(serve) -> None:
    calls = serve({"id": [1, 2], "content": ["a", "b"]})
    documents = read(config_name="raw", revision="abc", split="test")
    assert [(document.id, document.text) for document in documents] == [("1", "a"), ("2", "b")]
    assert calls == [(("owner/name", "raw"), {"split": "test", "revision": "c0ffee", "streaming": True})]


def test_only_the_first_documents_of_the_stream_are_the_pool(serve) -> None:
    serve({"text": [str(i) for i in range(MIN_POOL + 500)]})
    assert len(read(documents=1)) == MIN_POOL
    serve({"text": [str(i) for i in range(50)]})
    assert len(read(documents=3, pool=7)) == 7
    serve({"text": [str(i) for i in range(MIN_POOL + 500)]})
    assert len(read(documents=(MIN_POOL + 200) // POOL_FACTOR)) == MIN_POOL + 200


def test_wikitext_lines_become_articles(serve) -> None:
    serve({"text": ["", " = A = \n", "", " a \n", "", " = B = \n", "", " b \n"]})
    assert [article.title for article in read(join_articles=True)] == ["A", "B"]


@pytest.mark.parametrize("column", [None, "body"])
def test_a_wrong_column_lists_the_columns(serve, column: str | None) -> None:
    serve({"id": [1], "prose": ["a"]})
    with pytest.raises(UserError, match="Its columns: id, prose"):
        read(column=column)


def test_a_script_gives_way_to_the_fallback_files_aloud(serve, caplog) -> None:
    calls = serve(RuntimeError("Dataset scripts are no longer supported"), {"text": ["a"]})
    facts: dict[str, str] = {}
    assert [document.text for document in config(fallback_files=FILES).read(facts)] == ["a"]
    assert calls[1] == (("parquet",), {"data_files": FILES, "split": "train", "streaming": True})
    assert "loading script" in caplog.text and FILES in caplog.text
    assert facts == {"commit": "c0ffee", "files": FILES}


@pytest.mark.parametrize("changes", [{}, {"fallback_files": FILES, "revision": "pinned"}])
def test_other_loading_scripts_are_refused_with_advice(serve, changes: dict[str, str]) -> None:
    calls = serve(RuntimeError("Dataset scripts are no longer supported"))
    with pytest.raises(UserError, match="refs/convert/parquet"):
        read(**changes)
    assert len(calls) == 1


def test_named_files_are_read_in_place_of_what_the_repository_declares(serve) -> None:
    calls = serve({"text": ["a"]}, {"text": ["b"]})
    assert [document.text for document in read(data_files="data/*.parquet")] == ["a"]
    assert calls[0][1]["data_files"] == "data/*.parquet" and calls[0][0] == ("owner/name", None)
    assert [document.text for document in read(data_files=FILES)] == ["b"]
    assert calls[1] == (("parquet",), {"data_files": FILES, "split": "train", "streaming": True})


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (httpx2.ConnectError("refused"), "Check the network"),
        (ValueError("Bad split: x. Available splits: ['train']"), "Available splits"),
    ],
)
def test_a_failing_hub_is_explained(serve, error: Exception, advice: str) -> None:
    serve(error)
    with pytest.raises(UserError, match=advice) as caught:
        read()
    assert "owner/name" in str(caught.value)


def test_a_programming_error_is_not_disguised(serve) -> None:
    serve(TypeError("ours"))
    with pytest.raises(TypeError, match="ours"):
        read()


@pytest.mark.parametrize(
    "changes",
    [
        {"revision": "r"},
        {"config_name": "c"},
        {"split": "s"},
        {"column": "t"},
        {"join_articles": True},
        {"documents": MIN_POOL},
        {"pool": MIN_POOL + 1},
        {"data_files": "x"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_field_changes_the_identity_and_nothing_is_loaded(serve, changes: dict[str, Any]) -> None:
    calls = serve()
    assert config(**changes).identity() != config().identity()
    assert config(repo_id="a/b").identity() != config().identity()
    assert not calls


def test_no_repository_and_every_document_are_refused() -> None:
    with pytest.raises(ValidationError, match="repo_id"):
        config(repo_id=None)
    with pytest.raises(ValidationError, match="documents"):
        config(documents=0)


def test_another_size_is_drawn_from_the_same_pool() -> None:
    assert config(documents=3).resized(200).pool_size == MIN_POOL
    with pytest.raises(UserError, match=r"dataset\.pool=10: 12 documents"):
        config(documents=3, pool=10).resized(12)
