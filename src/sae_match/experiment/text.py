"""The text of a job as its sides read it: the same tokens, or, of different tokenizers, the same characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_match.arrays import TOKENS_AT_A_TIME
from sae_match.content import content_key
from sae_match.errors import UserError
from sae_match.keys import tensor_digest
from sae_match.language_model import ResidualStreams
from sae_match.matching.feature_pair import Streams
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import TokenWindows, load_fit_windows, load_windows
from sae_match.text.source import TextSource
from sae_match.text.stretches import PADDING, Reader, shared_positions
from sae_match.text.tokenization import Bos, bos_token


@dataclass(frozen=True)
class JobText:
    """One text as every side reads it.

    Attributes:
        read: the windows that each side's model reads; one where all read the same.
        rows: of different tokenizers, the positions of each side that are compared: the k-th of every side has read the
            same text (`text.stretches.shared_positions`). None where all read the same tokens.
        shares: how many of the tokens of each side these are, sink positions left out.
    """

    read: tuple[TokenWindows, ...]
    rows: tuple[Int[Tensor, " positions"], ...] | None = None
    shares: tuple[float, ...] = ()

    @classmethod
    def of(cls, read: Sequence[TokenWindows], sink_positions: Sequence[int]) -> JobText:
        """The text of sides that read the same windows, or windows over the same characters.

        Raises:
            UserError: there is no position at which all have read the same.
        """
        ends = [windows.ends for windows in read if windows.ends is not None]
        if not ends:
            return cls(tuple(read))
        rows = shared_positions(ends, sink_positions)
        if not len(rows[0]):
            raise UserError(
                "the tokenizers of these models never end a token at the same character, so that no positions can be "
                "compared; choose models of one tokenizer, or another dataset"
            )
        tokens = [int((one[:, sinks:] != PADDING).sum()) for one, sinks in zip(ends, sink_positions, strict=True)]
        return cls(tuple(read), tuple(rows), tuple(len(rows[0]) / n for n in tokens))

    def side(self, source: int) -> TokenWindows:
        """The windows that a side's model reads."""
        return self.read[min(source, len(self.read) - 1)]

    @cached_property
    def counted(self) -> TokenWindows:
        """The tokens that are counted: the first side's windows, or each compared position as a window of one token."""
        first = self.read[0]
        if self.rows is None:
            return first
        document = first.document[self.rows[0] // first.window_tokens]
        kept, document = torch.unique_consecutive(document, return_inverse=True)
        ids, titles = first.ids.flatten()[self.rows[0]][:, None], [first.titles[i] for i in kept.tolist()]
        info = first.info | {"compared_positions": len(ids), "compared_shares": list(self.shares)}
        return TokenWindows.build(ids, document, titles, info)

    def how(self, batch_windows: int, sink_positions: int) -> tuple[int, int]:
        """How many of the counted windows are read at a time, and how many positions of each are left out."""
        return (batch_windows, sink_positions) if self.rows is None else (TOKENS_AT_A_TIME, 0)

    def select(self, streams: Sequence[ResidualStreams]) -> tuple[Streams, ...]:
        """Each side's residual streams on the counted windows."""
        if self.rows is None:
            return tuple(streams)
        return tuple(SelectedStreams(*both) for both in zip(streams, self.rows, strict=True))

    def place(self, window: int, position: int) -> tuple[int, int]:
        """Window and position in the first side's windows of a counted token."""
        if self.rows is None:
            return window, position
        row = int(self.rows[0][window])
        return row // self.read[0].window_tokens, row % self.read[0].window_tokens


@dataclass(frozen=True)
class SelectedStreams:
    """Residual streams at some positions, each as a window of one token.

    Attributes:
        rows: window * tokens + position.
    """

    streams: ResidualStreams
    rows: Int[Tensor, " positions"]

    @property
    def key(self) -> str:
        """Content hash of model, text and positions."""
        return content_key({"streams": self.streams.key, "rows": tensor_digest(self.rows)})

    def layer(self, layer: int) -> Float[Tensor, "positions 1 d"]:
        """resid_post of one layer, read into memory."""
        return self.streams.layer(layer).flatten(0, 1)[self.rows][:, None]


def read_text(
    study: Study, sides: Sequence[Study], tokenizers: Sequence[Any], store: Store
) -> tuple[JobText, JobText | None]:
    """The evaluated text, and the one that controls are fitted on where anything is fitted.

    Args:
        tokenizers: one per side.

    Raises:
        UserError: a text that cannot be read, or tokenizers that cannot be compared.
    """
    text, first, bos = study.dataset, tokenizers[0], study.model.bos
    readers, over = [(first, bos)], None
    found = [load_windows(text, first, store, bos)]
    if not all(_cuts_alike(tokenizer, text, store, bos, found[0]) for tokenizer in tokenizers[1:]):
        over = Reader(first, bos_token(first, bos))
        readers = [(tokenizer, side.model.bos) for tokenizer, side in zip(tokenizers, sides, strict=True)]
        found = [load_windows(text, tokenizer, store, own, over) for tokenizer, own in readers]
    sinks = [side.model.sink_positions for side in sides]
    evaluated, documents = JobText.of(found, sinks), study.evaluation.fit_documents
    if not study.fitted:
        return evaluated, None
    fit = [
        load_fit_windows(text, windows, documents, tokenizer, store, own, over)
        for windows, (tokenizer, own) in zip(found, readers, strict=True)
    ]
    return evaluated, JobText.of(fit, sinks)


def _cuts_alike(tokenizer: Any, text: TextSource, store: Store, bos: Bos, windows: TokenWindows) -> bool:
    """Whether a tokenizer cuts a text into these windows."""
    try:
        return load_windows(text, tokenizer, store, bos).key == windows.key
    except UserError:
        return False  # too few documents are long enough in its tokens, so these are others
