"""Neuronpedia's explanation files: batch-N.jsonl or .jsonl.gz as the bucket `neuronpedia-datasets` lays them out.

Each line is a JSON object with `index` (the feature, a *string*), `description`, `layer` (such as
`20-gemmascope-res-16k`), `typeName`, `explanationModelName` and `id`. The order of lines is that of the index as text;
a feature has any number of explanations, or none.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sae_match.errors import UserError

MAX_LINE, ALWAYS_FINE, MAX_RATIO = 1 << 20, 1 << 28, 100
"""Characters of one explanation's line; a file that unpacks to more than 256 MiB and to more than 100 times its size is
no list of explanations (they pack about ten to one)."""
_BATCH = re.compile(r"^batch-\d+\.jsonl(\.gz)?$")


def explanation_files(folder: str, layer: int) -> list[Path]:
    """The batch files of one layer, by name.

    Args:
        folder: path with `{layer}` in it.

    Raises:
        UserError: there is no such folder, or no batch file in it.
    """
    directory = Path(folder.replace("{layer}", str(layer))).expanduser()
    if not directory.is_dir():
        raise UserError(f"judging.neuronpedia: no folder {directory} with the explanations of layer {layer}")
    files = sorted(path for path in directory.iterdir() if _BATCH.match(path.name))
    if not files:
        raise UserError(f"judging.neuronpedia: {directory} holds no batch-N.jsonl or batch-N.jsonl.gz")
    return files


def read_explanations(folder: str, layer: int, width: int) -> dict[int, str]:
    """One explanation per feature that has any.

    Of several the first by (typeName, explanationModelName, description, id) is taken, in the order of code points:
    it does not depend on the order of files or lines, and takes the same explainer in every layer where it can.
    Blank descriptions count as none.

    Args:
        folder: path with `{layer}` in it.
        width: number of features of the SAE.

    Raises:
        UserError: missing or unreadable files, a line that is no explanation, of another layer, or of a feature that
            the SAE does not have.
    """
    chosen: dict[int, tuple[str, ...]] = {}
    for path in explanation_files(folder, layer):
        for number, line in _lines(path):
            if not line.strip():
                continue
            feature, rank = _explanation(line, f"{path}, line {number}", layer, width)
            if rank[2].strip() and (feature not in chosen or rank < chosen[feature]):
                chosen[feature] = rank
    return {feature: chosen[feature][2] for feature in sorted(chosen)}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as packed:
                yield from enumerate(_short_lines(path, packed), start=1)
        else:
            with path.open(encoding="utf-8") as plain:
                yield from enumerate(_short_lines(path, plain), start=1)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable explanation file ({error}); fetch it again") from error


def _short_lines(path: Path, file: IO[str]) -> Iterator[str]:
    """The lines; memory stays bounded whatever a file unpacks to."""
    most, read = max(ALWAYS_FINE, MAX_RATIO * path.stat().st_size), 0
    while line := file.readline(MAX_LINE + 1):
        read += len(line)
        if len(line) > MAX_LINE or read > most:
            what = f"a line of more than {MAX_LINE} characters" if len(line) > MAX_LINE else f"more than {most} of text"
            raise UserError(f"{path}: unpacks to {what}, which is no list of explanations; fetch it again")
        yield line


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
