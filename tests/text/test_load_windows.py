"""load_windows: exact windows, BOS, the sample, the split and its errors."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sae_match.errors import UserError
from sae_match.store import Store
from sae_match.text import load_windows
from sae_match.text.source import Part
from sae_match.text.tokenization import cut_windows

BOS_ID, FIRST_WORD_ID = 1, 2


def ids_of(document: int, first: int, count: int) -> list[int]:
    """Ids of `count` words of document d{document}, from its word number `first`."""
    return [FIRST_WORD_ID + (5 * document + first + i) % 100 for i in range(count)]


def expected_windows(title: str, body: int, head: list[int]) -> list[list[int]]:
    number = int(title[1:3])
    return [head + ids_of(number, start, body) for start in range(0, 5 + number - body + 1, body)]


@pytest.mark.parametrize(
    ("named", "added", "bos", "head"),
    [
        (False, False, "auto", []),
        (True, False, "auto", []),
        (True, True, "auto", [BOS_ID]),
        (True, False, "required", [BOS_ID]),
        (True, True, "required", [BOS_ID]),
        (True, True, "none", []),
    ],
)
def test_windows_are_exact_with_bos_once_or_never(config, tmp_path, named, added, bos, head, make_tokenizer) -> None:
    windows = load_windows(config(), make_tokenizer(named, added), Store(tmp_path / "cache"), bos)
    expected = [expected_windows(title, 4 - len(head), head) for title in windows.titles]
    assert windows.ids.dtype == torch.int64
    assert windows.ids.tolist() == [window for document in expected for window in document]
    assert windows.document.tolist() == [i for i, document in enumerate(expected) for _ in document]
    assert sorted(windows.titles) == [f"d{i:02d}.txt" for i in range(12)]
    assert int((windows.ids == BOS_ID).sum()) == len(windows.ids) * len(head)


def test_a_bos_that_is_defined_but_not_added_is_mentioned(config, tmp_path, make_tokenizer, caplog) -> None:
    with caplog.at_level("INFO", logger="sae_match"):
        load_windows(config(), make_tokenizer(named=True), Store(tmp_path), "auto")
    assert "'[BOS]' but does not add it" in caplog.text and "model.bos=required" in caplog.text


def test_special_tokens_in_the_text_stay_text(config, tmp_path: Path, make_tokenizer) -> None:
    path = tmp_path / "one.txt"
    path.write_text("w0 [BOS] w1 [BOS] w2 w3", encoding="utf-8")
    windows = load_windows(
        config(path=str(path), window_tokens=3), make_tokenizer(added=True), Store(tmp_path / "cache")
    )
    assert (windows.ids == BOS_ID).sum(1).tolist() == [1] * len(windows.ids)


def test_bos_required_without_a_bos_token_is_refused(config, tmp_path: Path, make_tokenizer) -> None:
    with pytest.raises(UserError, match="no BOS token"):
        load_windows(config(), make_tokenizer(), Store(tmp_path), "required")


def test_windows_per_document_limits_each_document(config, tmp_path: Path, make_tokenizer) -> None:
    windows = load_windows(config(windows_per_document=1), make_tokenizer(), Store(tmp_path))
    assert windows.document.tolist() == list(range(12))
    assert windows.ids[:, 0].tolist() == [ids_of(int(title[1:3]), 0, 1)[0] for title in windows.titles]


def test_short_documents_are_passed_over_and_counted(config, tmp_path: Path, make_tokenizer) -> None:
    windows = load_windows(config(window_tokens=10), make_tokenizer(), Store(tmp_path))
    assert sorted(windows.titles) == [f"d{i:02d}.txt" for i in range(5, 12)]
    assert windows.info["too_short_documents"] == 5


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(config, tmp_path: Path, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    everything = load_windows(config(), tokenizer, Store(tmp_path))
    for n in (1, 5, 11):
        sample = load_windows(config(documents=n), tokenizer, Store(tmp_path))
        assert sample.key == everything.subset(everything.leading(n, 0)).key
    other = load_windows(config(seed=1), tokenizer, Store(tmp_path))
    assert sorted(other.titles) == sorted(everything.titles) and other.titles != everything.titles


def test_parts_are_disjoint_and_exhaustive(config, tmp_path: Path, make_tokenizer) -> None:
    titles = {
        part: set(load_windows(config(part=part), make_tokenizer(), Store(tmp_path / "cache")).titles)
        for part in get_args(Part)
    }
    assert titles["train"] and titles["evaluation"]
    assert titles["train"].isdisjoint(titles["evaluation"])
    assert titles["train"] | titles["evaluation"] == titles["all"]


def test_too_few_documents_says_how_many_and_what_to_change(config, tmp_path: Path, make_tokenizer) -> None:
    with pytest.raises(UserError, match=r"7 of 12 documents have at least 10 tokens.*8 were asked") as error:
        load_windows(config(window_tokens=10, documents=8), make_tokenizer(), Store(tmp_path))
    assert "dataset.window_tokens" in str(error.value) and "dataset.documents to 7" in str(error.value)
    with pytest.raises(UserError, match="0 of 12 documents"):
        load_windows(config(window_tokens=50), make_tokenizer(), Store(tmp_path))


@pytest.mark.parametrize(("field", "value"), [("window_tokens", 1), ("documents", -1), ("windows_per_document", -1)])
def test_nonsense_numbers_are_refused(config, field: str, value: int) -> None:
    with pytest.raises(ValidationError, match=field):
        config(**{field: value})


@given(
    st.lists(st.integers(2, 99), max_size=60), st.integers(2, 12), st.integers(0, 5), st.sampled_from([None, BOS_ID])
)
def test_cut_gives_full_windows_that_tile_the_beginning(ids, window_tokens, limit, bos) -> None:
    def tokenizer(text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    windows = cut_windows(tokenizer, " ".join(map(str, ids)), window_tokens, limit, bos).tolist()
    body = window_tokens - (bos is not None)
    assert all(len(window) == window_tokens for window in windows)
    assert [token for window in windows for token in window[-body:]] == ids[: body * len(windows)]
    assert len(windows) == min(len(ids) // body, limit or len(ids))
