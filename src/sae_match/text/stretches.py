"""The same text read by two tokenizers: windows over the same characters, and the positions that have read the same.

A residual at a token has seen the text up to that token's end, and no more. Two models' residuals are of the same text
where they began at the same character and their tokens end at the same one, so exactly such positions are paired; a
token that ends inside one of the other model's has no partner. The first tokenizer cuts a document into windows, as
always. The characters of each window are a stretch of text, which the other tokenizer reads on its own from its first
character: in the middle of a document neither model knows what came before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from sae_match.errors import UserError
from sae_match.text.tokenization import text_parts, tokenizer_identity

STRETCH_VERSION = 1
"""To be raised when stretches are read otherwise."""
NOWHERE, PADDING = -1, -2
"""In place of the end of a token that has no partner anywhere (BOS, a part of a character), and of what only fills up a
window."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A tokenizer, and the token that its windows begin with."""

    tokenizer: Any
    bos: int | None

    @cached_property
    def facts(self) -> dict[str, object]:
        """What windows depend on, as plain data."""
        return {"tokenizer": tokenizer_identity(self.tokenizer), "bos": self.bos}

    @cached_property
    def _backend(self) -> Tokenizer:
        """A copy of the tokenizer that adds nothing, knows no special tokens, and gives the bounds of tokens as they
        are: byte-level ones leave out the spaces that belong to a token."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise UserError(
                f"{type(self.tokenizer).__name__} does not say which characters a token stands for, by which models of "
                "different tokenizers are compared. Save a fast one into the model's directory (tokenizer.json: "
                "AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(DIR)), or choose models of one "
                "tokenizer"
            )
        copy = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = True
        copy.post_processor = None
        return copy

    def read(self, text: str, context: str = "") -> tuple[list[int], list[int]]:
        """Token ids of a part of a text, as `token_ids` gives them, and the number of its characters up to each one's
        end.

        Args:
            context: the characters before it.

        Raises:
            UserError: the tokenizer does not say which characters a token stands for.
        """
        known = len(self._backend.encode(context, add_special_tokens=False).ids) if context else 0
        encoding = self._backend.encode(context + text, add_special_tokens=False)
        return encoding.ids[known:], [end - len(context) for _, end in encoding.offsets[known:]]


class Rows(NamedTuple):
    """Windows of a document.

    Attributes:
        ids: token ids.
        ends: characters of the window's stretch that are read after each token, or NOWHERE or PADDING.
    """

    ids: Int[Tensor, "windows tokens"]
    ends: Int[Tensor, "windows tokens"]


def cut_stretches(first: Reader, own: Reader, text: str | Iterable[str], window_tokens: int, limit: int) -> Rows:
    """Windows of `own` over the characters of the windows that `first` cuts a document into (`cut_windows`).

    Where both are the same these are those windows. Otherwise a window that needs more than `window_tokens` is cut off
    there, and one that needs fewer is filled up with id 0, after which nothing is read: attention is causal.
    """
    body = window_tokens - (first.bos is not None)
    ids, ends, read = list[int](), list[int](), ""
    for context, part in text_parts(first.tokenizer, text):
        part_ids, part_ends = first.read(part, context)
        ids, ends, read = ids + part_ids, ends + [len(read) + end for end in part_ends], read + part
        if limit and len(ids) >= limit * body:
            break
    count = min(len(ids) // body, limit or len(ids))
    whole = _whole(ends)[: count * body].reshape(count, body)
    places = np.array(ends[: count * body], dtype=np.int64).reshape(count, body)
    starts = np.append(0, places[:, -1])[:count]
    # A window that begins inside a character has read what no other tokenizer can begin with.
    whole &= np.append(True, whole[:, -1])[:count, None]
    if own.facts == first.facts:
        own_ids = np.array(ids[: count * body], dtype=np.int64).reshape(count, body)
        return _rows(own_ids, np.where(whole, places - starts[:, None], NOWHERE), own.bos)
    body = window_tokens - (own.bos is not None)
    own_ids, own_ends = np.zeros((count, body), dtype=np.int64), np.full((count, body), PADDING)
    for row, (start, stop) in enumerate(zip(starts, places[:, -1], strict=True)):
        stretch_ids, stretch_ends = own.read(read[start:stop])
        n = min(body, len(stretch_ids))
        own_ids[row, :n] = stretch_ids[:n]
        own_ends[row, :n] = np.where(_whole(stretch_ends), stretch_ends, NOWHERE)[:n]
    unread = ~whole.any(axis=1)
    own_ends[unread] = np.minimum(own_ends[unread], NOWHERE)
    return _rows(own_ids, own_ends, own.bos)


def shared_positions(
    ends: Sequence[Int[Tensor, "windows tokens"]], sink_positions: Sequence[int]
) -> list[Int[Tensor, " positions"]]:
    """Of every side the positions after which all sides have read the same text, as window * tokens + position.

    They ascend, and the k-th of one side belongs to the k-th of every other.

    Args:
        ends: of the windows of each side, as in `Rows`.
        sink_positions: positions at each window's start that are left out.
    """
    longest = 1 + max(int(one.max()) for one in ends)
    keys, places = [], []
    for one, sinks in zip(ends, sink_positions, strict=True):
        counted = one.numpy().copy()
        counted[:, :sinks] = NOWHERE
        window, position = np.nonzero(counted > 0)  # after 0 characters nothing is read
        keys.append(window * longest + counted[window, position])
        places.append(window * one.shape[1] + position)
    shared = reduce(np.intersect1d, keys)
    return [torch.from_numpy(place[np.searchsorted(key, shared)]) for place, key in zip(places, keys, strict=True)]


def _whole(ends: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Whether a token ends a character: of the tokens that make up one, all of which end where it does, the last."""
    return np.append(np.diff(ends) > 0, True)[: len(ends)]


def _rows(ids: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], bos: int | None) -> Rows:
    if bos is not None:
        ids, ends = (np.insert(values, 0, first, axis=1) for values, first in ((ids, bos), (ends, NOWHERE)))
    return Rows(torch.from_numpy(ids), torch.from_numpy(ends))
