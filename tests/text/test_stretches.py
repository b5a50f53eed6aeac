"""Two tokenizers over the same text: planted windows and pairs of positions, and the rule itself on any text."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sae_match.errors import UserError
from sae_match.store import Store
from sae_match.text import load_fit_windows, load_windows
from sae_match.text.sources.local import LocalText
from sae_match.text.stretches import NOWHERE, PADDING, Reader, Rows, cut_stretches, shared_positions

BOS = 1000
ALPHABET = "ab é🎉日\n"


@cache
def words() -> PreTrainedTokenizerFast:
    names = ["?", "ab", "cd", "ef", "gh", "é", "f"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def characters() -> PreTrainedTokenizerFast:
    names = {name: i for i, name in enumerate(["?", *"abcdefgh ", *ALPHABET[3:]])}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def pieces(size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's, whose offsets leave out leading spaces; of size 256 its tokens are bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["ab ba  aab é日\n\n日 🎉🎉 abé", "a b ab 日本 ééa \n a"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_words_over_the_windows_of_characters() -> None:
    first, own = Reader(characters(), None), Reader(words(), BOS)
    rows = cut_stretches(first, own, "ab cd ef gh f", 6, 0)  # "ab cd ", "ef gh "; the rest is no window
    assert rows.ids.tolist() == [[BOS, 1, 2, 0, 0, 0], [BOS, 3, 4, 0, 0, 0]]
    assert rows.ends.tolist() == [[NOWHERE, 2, 5, *[PADDING] * 3]] * 2
    ours = cut_stretches(first, first, "ab cd ef gh f", 6, 0)
    assert ours.ends.tolist() == [[1, 2, 3, 4, 5, 6]] * 2
    paired = shared_positions([ours.ends, rows.ends], [1, 1])
    assert [one.tolist() for one in paired] == [[1, 4, 7, 10], [1, 2, 7, 8]]
    paired = shared_positions([rows.ends, ours.ends], [2, 1])  # the first word is a sink, too
    assert [one.tolist() for one in paired] == [[2, 8], [4, 10]]
    assert cut_stretches(first, own, "ab cd ef gh f", 6, 1).ids.tolist() == [[BOS, 1, 2, 0, 0, 0]]


def test_bytes_over_the_windows_of_words_are_cut_off() -> None:
    """A window ends after so many bytes, also inside a character, which is then not read."""
    first, own = Reader(words(), None), Reader(pieces(256), None)
    rows = cut_stretches(first, own, "ab cd é f gh", 2, 0)  # "ab cd", " é f"
    assert rows.ends.tolist() == [[1, 2], [1, NOWHERE]]
    ours = cut_stretches(first, first, "ab cd é f gh", 2, 0)
    assert ours.ids.tolist() == [[1, 2], [5, 6]] and ours.ends.tolist() == [[2, 5], [2, 4]]
    assert [one.tolist() for one in shared_positions([ours.ends, rows.ends], [0, 0])] == [[0], [1]]


def test_a_window_that_begins_inside_a_character_has_no_partners() -> None:
    first, own = Reader(pieces(256), None), Reader(characters(), None)
    text = "aaéaabbb"  # a a é | é a a | b b b
    assert cut_stretches(first, first, text, 3, 0).ends.tolist() == [[1, 2, NOWHERE], [NOWHERE] * 3, [1, 2, 3]]
    assert cut_stretches(first, own, text, 3, 0).ends.tolist() == [
        [1, 2, 3],
        [NOWHERE, NOWHERE, PADDING],
        [1, 2, 3],
    ]


@cache
def byte_of() -> dict[str, int]:
    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def read(reader: Reader, ids: list[int]) -> bytes:
    """What has been read after some tokens of a window, by the tokens' own bytes; no offset takes part."""
    tokens = reader.tokenizer.convert_ids_to_tokens(ids[reader.bos is not None :])
    if reader.tokenizer is characters():
        return "".join(tokens).encode()
    return bytes(byte_of()[letter] for letter in "".join(tokens))


def is_whole(text: bytes) -> bool:
    try:
        return bool(text.decode())
    except UnicodeDecodeError:
        return False


readers = st.builds(
    Reader, st.sampled_from([characters(), pieces(256), pieces(270), pieces(300)]), st.sampled_from([None, BOS])
)


@given(readers, readers, st.text(ALPHABET, max_size=40), st.integers(2, 9), st.integers(1, 2))
def test_positions_are_paired_exactly_where_the_same_was_read(
    first: Reader, own: Reader, text: str, tokens: int, sinks: int
) -> None:
    sides: list[tuple[Reader, Rows]] = [(one, cut_stretches(first, one, text, tokens, 0)) for one in (first, own)]
    if not len(sides[0][1].ids):
        return
    paired = shared_positions([rows.ends for _, rows in sides], [sinks, sinks])
    found = list(zip(*(one.tolist() for one in paired), strict=True))
    assert found == sorted(found) and all(bool((one.diff() > 0).all()) for one in paired)
    expected: list[tuple[int, int]] = []
    before = b""
    for window in range(len(sides[0][1].ids)):
        texts: list[dict[int, bytes]] = []
        for reader, rows in sides:
            ids, filled = rows.ids[window].tolist(), int((rows.ends[window] != PADDING).sum())
            texts.append({window * tokens + at: read(reader, ids[: at + 1]) for at in range(sinks, filled)})
        if window == 0 or is_whole(before):  # where the document is cut inside a character nothing is paired
            expected += [
                (a, b)
                for (a, one), (b, other) in product(texts[0].items(), texts[1].items())
                if one == other and is_whole(one)
            ]
        before += read(first, sides[0][1].ids[window].tolist())
    assert found == expected
    if own.facts == first.facts:
        assert torch.equal(*paired) and torch.equal(sides[0][1].ids, sides[1][1].ids)


class SlowTokenizer:
    """A word w7 is token 7, and where it stands nobody knows."""

    bos_token_id = bos_token = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word[1:]) for word in text.split()]}

    def get_vocab(self) -> dict[str, int]:
        return {f"w{i}": i for i in range(40)}


@pytest.fixture
def source(tmp_path: Path) -> LocalText:
    for i in range(6):
        (tmp_path / f"d{i}.txt").write_text(" ".join(["ab", "cd", "ef", "gh"][: 2 + i % 3] * 6), encoding="utf-8")
    return LocalText(name="t", path=str(tmp_path), documents=3, window_tokens=4, windows_per_document=2)


def test_windows_over_another_tokenizer_are_stored_and_drawn_as_its_own(source: LocalText, tmp_path: Path) -> None:
    store, over = Store(tmp_path / "cache"), Reader(words(), None)
    plain, same, other, again = (
        load_windows(source, *how)
        for how in (
            (words(), store), (words(), store, "auto", over), (characters(), store, "auto", over),
            (characters(), store, "auto", over),
        )
    )  # fmt: skip
    assert plain.ends is None and same.key == plain.key and same.ends is not None  # one entry of residual streams
    assert other.titles == plain.titles and torch.equal(other.document, plain.document) and other.key != plain.key
    assert again.ends is not None and other.ends is not None and torch.equal(again.ends, other.ends)
    fit = [load_fit_windows(source, one, 2, *how) for one, how in (
        (same, (words(), store, "auto", over)), (other, (characters(), store, "auto", over)),
    )]  # fmt: skip
    assert fit[0].titles == fit[1].titles and not set(fit[0].titles) & set(plain.titles)
    assert all(one.ends is not None and one.ends.shape == one.ids.shape for one in fit)


def test_a_tokenizer_without_offsets_is_refused(source: LocalText, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SlowTokenizer does not say which characters .*use_fast=True"):
        load_windows(source, SlowTokenizer(), Store(tmp_path), "auto", Reader(words(), None))
