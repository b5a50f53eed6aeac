"""Tokens as text: put together they are the window's text, whatever a tokenizer drops at its beginning."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sae_match.experiment.contexts import token_texts

WORDS = [" a", " cat", "s", ".", " A"]


def decode(ids: Sequence[int]) -> str:
    """As SentencePiece does: without the space at the beginning."""
    return "".join(WORDS[one] for one in ids).removeprefix(" ")


def test_texts_are_shared_and_add_up() -> None:
    windows = torch.tensor([[0, 1, 2, 3], [4, 1, 3, 3]])
    ids, texts = token_texts(windows, decode)
    assert ["".join(texts[one] for one in row) for row in ids] == ["a cats.", "A cat.."]
    assert texts == ["a", " cat", "s", ".", "A"]
