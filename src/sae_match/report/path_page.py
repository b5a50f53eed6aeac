"""Feature paths as an interactive page: one HTML file that needs no network (method section 4; the paper's Fig. 18)."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..errors import UserError
from .html_page import html_page

DATA_BYTES = 400_000
"""What the paths of a page may take; if there are more, a choice of them is shown."""

Link = Callable[[int, int], str | None]
"""From layer and feature to the address of a page about the feature, if there is one."""


def path_page(
    title: str,
    paths: pd.DataFrame,
    *,
    tokens: Mapping[tuple[int, int], str] | None = None,
    link: Link = lambda layer, feature: None,
    features: Sequence[int] = (),
    data_bytes: int = DATA_BYTES,
) -> str:
    """The page as HTML text.

    Texts are escaped, data cannot end its script element; `html_page` keeps everything else out.

    Args:
        title: heading.
        paths: rows as in paths.parquet.
        tokens: top tokens of a feature as one text, by layer and feature, where they are known.
        features: paths to show, by their feature in the first layer; empty = as many as fit, evenly spaced in the
            ranking by mean decoder MSE.
        data_bytes: room for the paths.

    Raises:
        UserError: a path is asked for that does not exist.
    """
    groups = (path for _, path in paths.groupby("path", sort=True))
    whole = {int(path["path"].iloc[0]): _entry(path, tokens or {}, link) for path in groups}
    chosen = _chosen(whole, features, data_bytes)
    layers = sorted(int(layer) for layer in paths["layer"].unique())
    data = _script_safe({"layers": layers, "paths": [whole[number] for number in chosen]})
    about = html.escape(_ABOUT.format(shown=len(chosen), all=len(whole), first=layers[0], last=layers[-1]))
    return html_page(title, "path_page", _BODY.format(about=about, data=data))


def _entry(path: pd.DataFrame, tokens: Mapping[tuple[int, int], str], link: Link) -> dict[str, object]:
    places = list(zip(path["layer"].tolist(), path["feature"].tolist(), strict=True))
    entry: dict[str, object] = {"feature": [feature for _, feature in places]}
    for name, column in (("mse", "mse_W_dec"), ("score", "matching_score"), ("cosine", "decoder_cosine")):
        entry[name] = [None if math.isnan(value) else float(f"{value:.3g}") for value in path[column].astype(float)]
    texts, links = [tokens.get(place, "") for place in places], [link(*place) for place in places]
    if any(texts):
        entry["tokens"] = texts
    if any(links):
        entry["link"] = links
    return entry


def _chosen(entries: Mapping[int, dict[str, object]], features: Sequence[int], room: int) -> list[int]:
    """The paths asked for, or as many as fit; ascending."""
    if unknown := set(features) - entries.keys():
        raise UserError(f"no path begins at feature {min(unknown)}: features are {min(entries)}..{max(entries)}")
    if features:
        return sorted(set(features))
    sizes = {number: len(_script_safe(entry)) + 1 for number, entry in entries.items()}
    if sum(sizes.values()) <= room:
        return list(entries)
    ranked = sorted(entries, key=lambda number: _mean_mse(entries[number]))
    count = max(1, room // max(sizes.values()))
    places = np.unique(np.linspace(0, len(ranked) - 1, count).round().astype(int))
    return sorted(ranked[place] for place in places)


def _mean_mse(entry: dict[str, object]) -> float:
    mse = entry["mse"]
    known = [value for value in mse if value is not None] if isinstance(mse, list) else []
    return float(np.mean(known)) if known else math.inf


def _script_safe(value: object) -> str:
    """JSON that may stand in a script element: without <, > and &, ASCII only."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


_ABOUT = (
    "{shown} of {all} features of layer {first}, followed to layer {last}. MSE: decoder, folded units; score: how "
    "often the feature fires when the one before it does; both of the step that leads to the layer."
)

_BODY = """<p>{about}</p>
<noscript><p>This page needs JavaScript; the same numbers are in paths.parquet.</p></noscript>
<main>
<section>
<label for="filter">Feature of any layer, or part of a token</label>
<input id="filter" type="search">
<label for="order">Order</label>
<select id="order">
<option value="mse">mean MSE</option>
<option value="score">mean score</option>
<option value="length">length</option>
<option value="feature">feature</option>
</select>
<label for="list">Path</label>
<select id="list" size="24"></select>
</section>
<table>
<thead><tr><th>layer</th><th>feature</th><th>MSE</th><th>score</th><th>cosine</th><th>top tokens</th></tr></thead>
<tbody id="rows"></tbody>
</table>
</main>
<script type="application/json" id="data">{data}</script>"""
