"""Pages of feature paths, written from records that hold paths.parquet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sae_match.files import write_text

from ..errors import UserError
from ..record.contents import PATHS, TOP_TOKENS
from .path_page import Link, path_page
from .records import Record

STEP_COLUMNS = ("mse_W_dec", "decoder_cosine", "matching_score")
SHOWN_TOKENS = 8
NEURONPEDIA = "https://www.neuronpedia.org"
OTHER_THAN_CANONICAL = {"paper": (4, 13, 14)}
"""Neuronpedia has each layer's canonical SAE. In these layers `sae.l0=paper` is another one, with other features."""


def write_path_pages(records: Sequence[Record], directory: Path, features: Sequence[int] = ()) -> list[Path]:
    """One page per record that holds paths: paths.html, or paths_N.html where there are several.

    Args:
        features: as in `path_page`.

    Raises:
        UserError: a table of a record cannot be read, or a path is asked for that does not exist.
    """
    chosen = [record for record in records if (record.path / PATHS).is_file()]
    written: list[Path] = []
    for number, record in enumerate(chosen):
        target = directory / ("paths.html" if len(chosen) == 1 else f"paths_{number}.html")
        page = path_page(
            f"Feature paths: {record.factors.get('sae', record.name)} ({record.name})",
            _read(record.path / PATHS, ["path", "layer", "feature", *STEP_COLUMNS]),
            tokens=top_tokens(record.path / TOP_TOKENS),
            link=neuronpedia_link(record.config.get("sae", {})),
            features=features,
        )
        write_text(target, page)
        written.append(target)
    return written


def top_tokens(path: Path) -> dict[tuple[int, int], str]:
    """The first tokens of every feature as one text, by layer and feature; empty where the record has no such table."""
    if not path.is_file():
        return {}
    table = _read(path, ["layer", "feature", "token"])
    first = table.groupby(["layer", "feature"], sort=False).head(SHOWN_TOKENS)
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for layer, feature, token in zip(first["layer"], first["feature"], first["token"], strict=True):
        found[int(layer), int(feature)].append(str(token))
    return {place: " · ".join(texts) for place, texts in found.items()}


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable table with {', '.join(columns)} ({error})") from error


def neuronpedia_link(sae: Mapping[str, Any]) -> Link:
    """Addresses of features on Neuronpedia, for SAEs that are there (`sae.neuronpedia`).

    Args:
        sae: the `sae` group of a record's configuration.
    """
    template, l0 = sae.get("neuronpedia"), sae.get("l0")
    others = OTHER_THAN_CANONICAL.get(str(l0), ())
    known = isinstance(template, str) and (l0 in (None, "canonical") or bool(others))

    def link(layer: int, feature: int) -> str | None:
        if not known or layer in others:
            return None
        return f"{NEURONPEDIA}/{str(template).format(layer=layer)}/{feature}"

    return link
