"""Tokens as text: whole characters, and bytes of which none can be made."""

from __future__ import annotations

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sae_match.text.tokenization import decode_tokens


def wrapped(tokenizer: Tokenizer) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_level() -> transformers.PreTrainedTokenizerFast:
    """One token per byte."""
    vocabulary = {character: value for value, character in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrapped(tokenizer)


def test_bytes_are_shown_where_there_is_no_character() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a “q")
    assert decode_tokens(tokenizer, ids) == "a “q"
    assert decode_tokens(tokenizer, ids[2:3]) == r"\xe2"
    assert decode_tokens(tokenizer, ids[1:4]) == r" \xe2\x80"
    assert decode_tokens(tokenizer, ids[4:]) == r"\x9cq"
    assert decode_tokens(tokenizer, tokenizer.encode("\ufffd")) == "\ufffd", "a text may hold that character"


def test_byte_tokens_of_sentencepiece() -> None:
    vocabulary = {"<unk>": 0, "<0xE2>": 1, "<0x82>": 2, "<0xAC>": 3, "▁is": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert decode_tokens(wrapped(tokenizer), [1, 2, 3, 4]) == "€ is"
    assert decode_tokens(wrapped(tokenizer), [1, 2, 4]) == r"\xe2\x82 is"
