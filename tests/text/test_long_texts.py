"""Texts of any length: tokenized in parts with the tokens of the whole, and read no further than they are needed."""

from __future__ import annotations

import json
import os
import random
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.store import Store
from sae_match.text import load_windows, tokenization
from sae_match.text.source import Document, TextSource
from sae_match.text.sources import local
from sae_match.text.sources.local import LocalText
from sae_match.text.tokenization import token_ids

WORDS = ["the", "theory", "of", "features,", "(sparse)", "42", "naïve", "cafe\u0301", "don't", "A.\n\nB", "  x"]
SPACELESS = "特徴の対応を求める。層ごとに辞書を学習し、比べる。"


def byte_level(prefix: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return tokenizer


def llama_like() -> Tokenizer:
    """The whole text is one pre-token, with a space in front that the text does not have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def trained(tokenizer: Tokenizer, text: str) -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(tokenizer.model, models.BPE) else []
    kind = trainers.UnigramTrainer if isinstance(tokenizer.model, models.Unigram) else trainers.BpeTrainer
    sample = [text[i : i + 60] for i in range(0, 3000, 60)]
    tokenizer.train_from_iterator(sample, kind(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("make", [byte_level, lambda: byte_level(prefix=True), llama_like, unigram])
@pytest.mark.parametrize("spaces", [True, False])
def test_parts_have_the_tokens_of_the_whole(make, spaces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    text = " ".join(draw.choices(WORDS, k=6000)) if spaces else "".join(draw.choices(SPACELESS, k=20_000))
    tokenizer = trained(make(), text)
    (whole,) = token_ids(tokenizer, text)
    monkeypatch.setattr(tokenization, "PIECE", 3000)
    pieces = (text[i : i + 700] for i in range(0, len(text), 700))
    for parts in (list(token_ids(tokenizer, text)), list(token_ids(tokenizer, pieces))):
        assert len(parts) > 5
        assert [token for part in parts for token in part] == whole


def test_a_text_that_cannot_be_cut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lengths(text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [len(text)]}

    monkeypatch.setattr(tokenization, "PIECE", 3000)
    with pytest.raises(UserError, match="more than 3000 characters cannot be cut"):
        list(token_ids(lengths, "w " * 5000))


def test_one_window_of_a_huge_file_takes_the_memory_of_one_piece(
    config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tokenizer
) -> None:
    """A quarter of a gigabyte, most of it a hole."""
    path = tmp_path / "corpus.txt"
    path.write_text("w1 w2 w3 " * 300_000)
    os.truncate(path, 2**28)
    read: list[int] = []
    pieces = local._pieces

    def counted(file: Path) -> Iterator[str]:
        for piece in pieces(file):
            read.append(len(piece))
            yield piece

    monkeypatch.setattr(local, "_pieces", counted)
    source = config(path=str(path), window_tokens=6, windows_per_document=1, documents=1)
    tracemalloc.start()
    windows = load_windows(source, make_tokenizer(), Store(tmp_path / "cache"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert windows.ids.tolist() == [[3, 4, 5, 3, 4, 5]]
    assert sum(read) <= 2 * local.MAX_WHOLE and peak < 2**26


def test_all_windows_of_a_large_file(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tokenizer) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text(" ".join(f"w{i % 97}" for i in range(5000)))
    whole = load_windows(config(path=str(path)), make_tokenizer(), Store(tmp_path / "whole"))
    monkeypatch.setattr(tokenization, "PIECE", 3000)
    monkeypatch.setattr(local, "MAX_WHOLE", 1000)
    parts = load_windows(config(path=str(path)), make_tokenizer(), Store(tmp_path / "parts"))
    assert parts.n_windows == 1250 and parts.key == whole.key


@pytest.mark.parametrize("join", [False, True])
def test_rows_are_read_as_they_are_asked_for(tmp_path: Path, join: bool) -> None:
    path = tmp_path / ("corpus.txt" if join else "corpus.jsonl")
    with path.open("w") as file:
        for i in range(3000):
            body = f"{i} " * 5000
            file.write(f"\n = T{i} = \n\n{body}\n" if join else json.dumps({"text": body}) + "\n")
    tracemalloc.start()
    documents = LocalText(name="x", path=str(path), join_articles=join).read({})
    assert sum(1 for _ in islice(documents, 2900)) == 2900
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 2**26 and peak < 2**22


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_LINE", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n[' + "1, " * 1000 + "1]\n")
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2 has more than 1000 characters"):
        list(LocalText(name="x", path=str(path)).read({}))


@option
class Numbers(TextSource):
    """Document i has i % 7 words; every document is drawn in an order of its own."""

    def identity(self) -> dict[str, str]:
        return {}

    def read(self, facts: dict[str, str]) -> Iterator[Document]:
        for i in range(400):
            yield Document(str(i), str(i), " ".join(f"w{(i + j) % 100}" for j in range(i % 7)))


@pytest.mark.parametrize("documents", [0, 1, 30, 170])
def test_the_sample_is_that_of_sorting_all_documents(documents: int, tmp_path: Path, make_tokenizer) -> None:
    source = Numbers(name="n", documents=documents, window_tokens=4, windows_per_document=0, seed=3)
    windows = load_windows(source, make_tokenizer(), Store(tmp_path))
    drawn, short = [], 0
    for document in sorted(source.read({}), key=source.rank):
        if documents and len(drawn) == documents:
            break
        enough = int(document.id) % 7 >= 4
        short += not enough
        drawn += [document.title] * enough
    assert windows.titles == drawn and windows.info["too_short_documents"] == short
