"""Documents to windows of token ids, and what of a tokenizer they depend on: its identity, and whether it adds BOS."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_match.errors import UserError

Bos = Literal["auto", "required", "none"]

PIECE = 2**18
"""Characters that are tokenized at once; each takes some 150 bytes meanwhile."""
_CONTEXT = 2**9
"""Characters on either side that decide about a token."""
_WORD_END = re.compile(r"(?<=\S)\s")

_log = logging.getLogger(__name__)


def cut_windows(
    tokenizer: Any, text: str | Iterable[str], window_tokens: int, limit: int, bos: int | None
) -> Int[Tensor, "windows tokens"]:
    """Cut a document from its start into full windows of `window_tokens`, at most `limit` (0 = no limit).

    Where `bos` is given every window begins with it and holds one token fewer of the document. No more of the text is
    read than is needed.
    """
    body = window_tokens - (bos is not None)
    ids = array("q")
    for part in token_ids(tokenizer, text):
        ids.extend(part)
        if limit and len(ids) >= limit * body:
            break
    count = min(len(ids) // body, limit or len(ids))
    rows = torch.from_numpy(np.array(ids[: count * body], dtype=np.int64)).view(count, body)
    return rows if bos is None else torch.cat([torch.full((count, 1), bos), rows], dim=1)


def token_ids(tokenizer: Any, text: str | Iterable[str]) -> Iterator[list[int]]:
    """Token ids of a text, in parts: no special tokens are added, and none is recognized inside the text.

    Raises:
        UserError: as from `text_parts`.
    """
    for context, part in text_parts(tokenizer, text):
        yield _encode_after(tokenizer, context, part)


def text_parts(tokenizer: Any, text: str | Iterable[str]) -> Iterator[tuple[str, str]]:
    """Parts of a text, each after the 512 characters before it, which decide about its tokens.

    A text of more than PIECE characters is cut where its tokens stay what they are in the whole text, provided that no
    token depends on what is more than 512 characters away.

    Raises:
        UserError: there is no such place.
    """
    pieces = (text[i : i + PIECE] for i in range(0, len(text), PIECE)) if isinstance(text, str) else text
    context = rest = ""
    for piece in pieces:
        rest += piece
        while len(rest) > PIECE + _CONTEXT:
            place = _cut_place(tokenizer, rest)
            yield context, rest[:place]
            context, rest = rest[place - _CONTEXT : place], rest[place:]
    yield context, rest


def _cut_place(tokenizer: Any, text: str) -> int:
    """The last end of a word before PIECE, or else the last character, at which a token ends whatever follows it."""
    words = [match.start() for match in _WORD_END.finditer(text, PIECE - 16 * _CONTEXT, PIECE)]
    for place in [*words[:-64:-1], *range(PIECE, PIECE - 64, -1)]:
        before, around = text[place - _CONTEXT : place], text[place - _CONTEXT : place + _CONTEXT]
        ids = _encode(tokenizer, before)
        if _encode(tokenizer, around)[: len(ids)] == ids:
            return place
    raise UserError(
        f"a document of more than {PIECE} characters cannot be cut without changing its tokens (after "
        f"{text[PIECE - 20 : PIECE]!r}): split it into several"
    )


def _encode_after(tokenizer: Any, context: str, text: str) -> list[int]:
    known = len(_encode(tokenizer, context)) if context else 0
    return _encode(tokenizer, context + text)[known:]


def _encode(tokenizer: Any, text: str) -> list[int]:
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids: list[int] = encoding["input_ids"]
    return ids


def bos_token(tokenizer: Any, bos: Bos) -> int | None:
    """Return the id that each window begins with, or None.

    auto: BOS where the tokenizer itself adds it (Gemma, Llama 3), none where it does not, even if it names a BOS
    token (SmolLM2; GPT-2 and Pythia, whose <|endoftext|> stood between documents in training): that is logged, since
    SAEs may have been trained either way. required: BOS always. none: never.

    Raises:
        UserError: BOS is required, and there is none.
    """
    token = tokenizer.bos_token_id
    if bos == "required" and token is None:
        raise UserError(
            "model.bos=required, but the tokenizer has no BOS token.\n"
            "Use model.bos=auto (BOS where the tokenizer adds one) or model.bos=none."
        )
    if bos == "none" or token is None:
        return None
    if bos == "required" or tokenizer("a", verbose=False)["input_ids"][:1] == [token]:
        return int(token)
    _log.info(
        "the tokenizer names the BOS token %r but does not add it: windows begin without (model.bos=required adds it)",
        tokenizer.bos_token,
    )
    return None


def tokenizer_identity(tokenizer: Any) -> str:
    """SHA-256 of what decides a tokenizer's output: its serialized pipeline, or its class and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # Set by whoever called the tokenizer last, and never used here.
        state.pop("truncation", None)
        state.pop("padding", None)
    else:
        state = {"class": type(tokenizer).__name__, "vocabulary": sorted(tokenizer.get_vocab().items())}
    state["bos_token_id"] = tokenizer.bos_token_id
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def decode_tokens(tokenizer: Any, ids: Sequence[int]) -> str:
    r"""The text of tokens; bytes that make no whole character are shown as Python writes them, such as \xe2\x80."""
    tokens = [int(one) for one in ids]
    text = str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
    if "\ufffd" not in text:
        return text
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # what byte-level vocabularies are written in

    values = {character: value for value, character in bytes_to_unicode().items()}
    raw = b""
    for token in tokenizer.convert_ids_to_tokens(tokens):
        if found := _BYTE_TOKEN.fullmatch(token):
            raw += bytes.fromhex(found[1])
        elif all(character in values for character in token):
            raw += bytes(values[character] for character in token)
        else:
            raw += token.replace("\u2581", " ").encode()
    return raw.decode("utf-8", errors="backslashreplace")
