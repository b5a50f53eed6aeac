"""A word-level tokenizer made by hand, with and without BOS, and a folder of short texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sae_match.text.sources.local import LocalText

BOS_ID = 1
FIRST_WORD_ID = 2


def build_tokenizer(named: bool = False, added: bool = False, words: int = 100) -> PreTrainedTokenizerFast:
    """Words w0, w1, ... are the ids 2, 3, ...; `named` gives it a BOS token, `added` makes it prepend that."""
    vocabulary = {"[UNK]": 0, "[BOS]": BOS_ID} | {f"w{i}": FIRST_WORD_ID + i for i in range(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if added:
        tokenizer.post_processor = TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", BOS_ID)])
    extra = {"bos_token": "[BOS]"} if named or added else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **extra)


def words(count: int, start: int = 0) -> str:
    """`count` consecutive words, w{start} first, wrapping at w99."""
    return " ".join(f"w{(start + i) % 100}" for i in range(count))


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """The maker of word-level tokenizers."""
    return build_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve documents d00.txt .. d11.txt; document i has 5 + i words and begins with w{5 i}."""
    root = tmp_path / "texts"
    root.mkdir()
    for i in range(12):
        (root / f"d{i:02d}.txt").write_text(words(5 + i, 5 * i), encoding="utf-8")
    return root


@pytest.fixture
def config(folder: Path) -> Callable[..., LocalText]:
    """A maker of configurations of `folder`: every document, windows of 4 tokens, as many as fit."""

    def make(**changes: object) -> LocalText:
        fields: dict[str, object] = {
            "name": "tiny",
            "path": str(folder),
            "documents": 0,
            "window_tokens": 4,
            "windows_per_document": 0,
        }
        return LocalText(**(fields | changes))  # type: ignore[arg-type]

    return make
