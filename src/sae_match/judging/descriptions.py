"""What a judge is shown of a feature."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, as a tokenizer does."""

Place = tuple[int, int]
"""Window and position of a token."""

CONTEXTS = "Most activating tokens:"
"""How a description by top contexts begins; any other is an explanation."""

_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = (
    "the and for that with from this are its into such their other which while especially particularly related "
    "references reference mentions mention instances terms term words word phrases phrase text various"
)
_STOP_WORDS = frozenset(_COMMON.split())
"""Words that most explanations share and that say nothing of a feature's meaning."""


@dataclass(frozen=True)
class Description:
    """A feature in words.

    Attributes:
        text: for a language model to read.
        terms: how often each normalised top token (or word of an explanation) occurs.
        places: where in the text the top activations are; empty for an explanation.
    """

    text: str
    terms: Mapping[str, int]
    places: frozenset[Place] = field(default_factory=frozenset)


def explained(explanation: str, limit: int) -> Description:
    """A description from an explanation; its terms are its words of three letters or more without stop words.

    Args:
        limit: most characters kept.
    """
    text = " ".join(explanation.split())
    words = [word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]
    return Description(text[:limit], Counter(words))


def from_contexts(
    ids: Sequence[Sequence[int]], places: Sequence[Place], decode: Decode, around: int, limit: int
) -> Description | None:
    """A description from top-activating contexts: the tokens, then each in its context between « and ».

    Args:
        ids: token ids of all windows (anything that indexes like a list of lists, such as a tensor's rows).
        places: top activations, largest first.
        around: tokens on either side.
        limit: most characters; contexts that would pass it are left out, smallest activations first.

    Returns:
        None where there is no place: the feature never fires.
    """
    if not places:
        return None
    shown = [_context(list(ids[window]), position, decode, around) for window, position in places]
    terms = Counter(visible(token).lower() for _, token, _ in shown)
    text = f"{CONTEXTS} " + ", ".join(f'"{token}"' for token in dict.fromkeys(visible(t) for _, t, _ in shown))
    for left, token, right in shown:
        line = "\n- " + " ".join(f"{left}«{token}»{right}".split())
        if len(text) + len(line) > limit:
            break
        text += line
    return Description(text[:limit], terms, frozenset(places))


def visible(token: str) -> str:
    """A token without surrounding white space; a token that is white space is escaped."""
    return token.strip() or token.encode("unicode_escape").decode()


def _context(ids: list[int], position: int, decode: Decode, around: int) -> tuple[str, str, str]:
    """Text before, at and after a position. Prefixes are decoded and not pieces: some tokenizers drop the space at
    the beginning of what they decode."""
    start = max(0, position - around)
    before = decode(ids[start:position])
    up_to = decode(ids[start : position + 1])
    whole = decode(ids[start : position + 1 + around])
    if up_to.startswith(before) and whole.startswith(up_to):
        return before, up_to[len(before) :], whole[len(up_to) :]
    # A character that is spread over several tokens: the pieces have no text of their own that adds up.
    return before, decode(ids[position : position + 1]), decode(ids[position + 1 : position + 1 + around])
