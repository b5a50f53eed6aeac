"""Tokenizer facts the windows depend on: its identity, and whether it begins a text with BOS."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any, Literal

from sae_match.errors import UserError

Bos = Literal["auto", "required", "none"]

_log = logging.getLogger(__name__)


def bos_token(tokenizer: Any, bos: Bos) -> int | None:
    """Return the id that each window begins with, or None.

    auto: BOS where the tokenizer itself adds it (Gemma, Llama 3), none where it does not, even if it names a BOS
    token (SmolLM2; GPT-2 and Pythia, whose <|endoftext|> stood between documents in training): that is logged, since
    SAEs may have been trained either way. required: BOS always. none: never.

    Raises UserError for `required` without a BOS token.
    """
    token = tokenizer.bos_token_id
    if bos == "required" and token is None:
        raise UserError(
            "model.bos=required, but the tokenizer has no BOS token.\n"
            "Use model.bos=auto (BOS where the tokenizer adds one) or model.bos=none."
        )
    if bos == "none" or token is None:
        return None
    if bos == "required":
        return int(token)
    if tokenizer("a", verbose=False)["input_ids"][:1] == [token]:
        return int(token)
    _log.info(
        "the tokenizer names the BOS token %r but does not add it: windows begin without (model.bos=required adds it)",
        tokenizer.bos_token,
    )
    return None


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` alone: no special tokens are added, and none is recognised inside the text."""
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids: list[int] = encoding["input_ids"]
    return ids


def tokenizer_identity(tokenizer: Any) -> str:
    """SHA-256 of what decides a tokenizer's output: its serialised pipeline, or its class and vocabulary."""
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
