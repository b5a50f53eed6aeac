"""What a judge is shown of a feature: an explanation from Neuronpedia's files, or the contexts that activate it most.

The bucket `neuronpedia-datasets` holds batch-N.jsonl or .jsonl.gz. Each line is a JSON object with `index` (the
feature, a *string*), `description`, `layer` (such as `20-gemmascope-res-16k`), `typeName`, `explanationModelName` and
`id`, in the order of the index as text; a feature has any number of explanations, or none.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_match.errors import UserError

MAX_LINE, ALWAYS_FINE, MAX_RATIO = 1 << 20, 1 << 28, 100
"""Characters of one explanation's line; a file that unpacks to more than 256 MiB and to more than 100 times its size is
no list of explanations (they pack about ten to one)."""
_BATCH = re.compile(r"^batch-\d+\.jsonl(\.gz)?$")

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
"""Words that most explanations share and that tell nothing of a feature's meaning."""


@dataclass(frozen=True)
class Description:
    """A feature in words.

    Attributes:
        text: for a language model to read.
        terms: how often each normalized top token (or word of an explanation) occurs.
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
    shown = [context(list(ids[window]), position, decode, around) for window, position in places]
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


def context(ids: list[int], position: int, decode: Decode, around: int) -> tuple[str, str, str]:
    """Text before, at and after a position. Prefixes are decoded and not pieces: some tokenizers drop the space at
    the beginning of what they decode."""
    start, end = max(0, position - around), position + 1 + around
    before, up_to, whole = decode(ids[start:position]), decode(ids[start : position + 1]), decode(ids[start:end])
    if up_to.startswith(before) and whole.startswith(up_to):
        return before, up_to[len(before) :], whole[len(up_to) :]
    # A character that is spread over several tokens: the pieces have no text of their own that adds up.
    return before, decode(ids[position : position + 1]), decode(ids[position + 1 : end])


def explanation_files(folder: str, layer: int, key: str = "judging.neuronpedia") -> list[Path]:
    """The batch files of one layer, by name.

    Args:
        folder: path with `{layer}` in it.
        key: what the folder is called, for the error.

    Raises:
        UserError: there is no such folder, or no batch file in it.
    """
    directory = Path(folder.replace("{layer}", str(layer))).expanduser()
    if not directory.is_dir():
        raise UserError(f"{key}: no folder {directory} with the explanations of layer {layer}")
    files = sorted(path for path in directory.iterdir() if _BATCH.match(path.name))
    if not files:
        raise UserError(f"{key}: {directory} holds no batch-N.jsonl or batch-N.jsonl.gz")
    return files


def read_explanations(folder: str, layer: int, width: int, key: str = "judging.neuronpedia") -> dict[int, str]:
    """One explanation per feature that has any.

    Of several the first by (typeName, explanationModelName, description, id) is taken, in the order of code points:
    it does not depend on the order of files or lines, and takes the same explainer in every layer where it can.
    Blank descriptions count as none.

    Args:
        folder: path with `{layer}` in it.
        width: number of features of the SAE.
        key: what the folder is called, for the error.

    Raises:
        UserError: missing or unreadable files, a line that is no explanation, of another layer, or of a feature that
            the SAE does not have.
    """
    chosen: dict[int, tuple[str, ...]] = {}
    for path in explanation_files(folder, layer, key):
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            feature, rank = _explanation(line, f"{path}, line {number}", layer, width)
            if rank[2].strip() and (feature not in chosen or rank < chosen[feature]):
                chosen[feature] = rank
    return {feature: chosen[feature][2] for feature in sorted(chosen)}


def _lines(path: Path) -> Iterator[str]:
    """The lines of a batch file; memory stays bounded whatever it unpacks to."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        most, read = max(ALWAYS_FINE, MAX_RATIO * path.stat().st_size), 0
        with opener(path, "rt", encoding="utf-8") as file:
            while line := str(file.readline(MAX_LINE + 1)):
                read += len(line)
                if len(line) > MAX_LINE or read > most:
                    limit = f"a line of more than {MAX_LINE}" if len(line) > MAX_LINE else f"more than {most}"
                    raise UserError(
                        f"{path}: unpacks to {limit} characters, which is no list of explanations; fetch it again"
                    )
                yield line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable explanation file ({error}); fetch it again") from error


def _explanation(line: str, where: str, layer: int, width: int) -> tuple[int, tuple[str, ...]]:
    """The feature, and what its explanations are ordered by."""
    try:
        entry: Any = json.loads(line)
        feature = int(entry["index"])
        named = [entry.get(name) or "" for name in ("typeName", "explanationModelName", "description", "id")]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: not an explanation with an index and a description ({error})") from None
    if not 0 <= feature < width:
        raise UserError(f"{where}: feature {feature}, but the SAE of layer {layer} has {width}: other SAEs' files?")
    source = entry.get("layer")
    if isinstance(source, str) and source and source.split("-")[0] != str(layer):
        raise UserError(f"{where}: an explanation of {source}, not of layer {layer}")
    return feature, tuple(str(value) for value in named)
