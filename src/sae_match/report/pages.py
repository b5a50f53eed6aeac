"""Pages that are one file and open offline: the frame of every page, and feature paths as an interactive page (the
paper's Fig. 18)."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

from ..errors import UserError
from ..record.contents import PATHS, TOP_TOKENS
from .features import read_table, top_tokens
from .records import Record

WEB = "web"
"""Folder with the templates, styles and scripts."""
STEPS = {"mse": "mse_W_dec", "score": "matching_score", "cosine": "decoder_cosine"}
"""What the page of paths shows of every step, and the columns of paths.parquet that hold it."""
DATA_BYTES = 400_000
"""What the paths of a page may take; if there are more, a choice of them is shown."""
NEURONPEDIA = "https://www.neuronpedia.org"
OTHER_THAN_CANONICAL = {"paper": (4, 13, 14)}
"""Neuronpedia has each layer's canonical SAE. In these layers `sae.l0=paper` is another one, with other features."""

Link = Callable[[int, int], str | None]
"""From layer and feature to the address of a page about the feature, if there is one."""
dumps = partial(json.dumps, allow_nan=False, separators=(",", ":"))


def html_page(
    name: str, title: str, library: str = "", *, parts: Sequence[str] = (), images: bool = False, **content: Any
) -> str:
    """A whole page as HTML text, from the files `name`.html, .css and .js in `web`; before its script stand a `library`
    and those of its `parts`, `name`_part.js.

    Everything in `content` is escaped, but for `Markup`. The content security policy admits the page's own script and
    style by their hashes, with `images` also images inside the file, and nothing else.
    """
    folder = files("sae_match.report").joinpath(WEB)
    names = [*(f"{name}_{part}.js" for part in parts), f"{name}.js", f"{name}.css"]
    *scripts, style = (folder.joinpath(file).read_text("utf-8") for file in names)
    script = "\n".join([library, *scripts] if library else scripts)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    policy = f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
    policy += f"{'img-src data:; ' if images else ''}base-uri 'none'; form-action 'none'"
    page = _environment().get_template(f"{name}.html")
    return page.render(title=title, policy=policy, script=Markup(script), style=Markup(style), **content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sae_match.report", WEB), autoescape=True, finalize=visible, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["breakable"] = breakable
    return environment


def visible(value: Any) -> Any:
    """A text with its control characters and marks that turn the writing direction shown as their codes: they would let
    one name pass for another. Anything else as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in value)


def breakable(title: str) -> Markup:
    """A column's heading that may break after each part of a metric's name, but not before its mark."""
    return Markup(str(escape(visible(title))).replace("/", "/<wbr>").replace(" ↓", "&nbsp;↓"))


def paths_of(record: Record, features: Sequence[int] = ()) -> str:
    """`path_page` of a record that holds paths; a table that cannot be read is a UserError, too."""
    return path_page(
        f"Feature paths: {record.factors.get('sae', record.name)} ({record.name})",
        read_table(record.path / PATHS, ["path", "layer", "feature", *STEPS.values()]),
        tokens=top_tokens(record.path / TOP_TOKENS),
        link=neuronpedia_link(record.config.get("sae", {})),
        features=features,
    )


def neuronpedia_link(sae: Mapping[str, Any]) -> Link:
    """Addresses of features on Neuronpedia, for SAEs that are there (`sae.neuronpedia`); from the `sae` group of a
    record's configuration."""
    template, l0 = sae.get("neuronpedia"), sae.get("l0")
    others = OTHER_THAN_CANONICAL.get(str(l0), ())
    known = isinstance(template, str) and (l0 in (None, "canonical") or bool(others))

    def link(layer: int, feature: int) -> str | None:
        there = known and layer not in others
        return f"{NEURONPEDIA}/{str(template).format(layer=layer)}/{feature}" if there else None

    return link


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

    Args:
        paths: rows as in paths.parquet.
        tokens: top tokens of a feature as one text, by layer and feature, where they are known.
        features: paths to show, by their feature in the first layer; empty = as many as fit, evenly spaced in the
            ranking by mean decoder MSE.
        data_bytes: room for the paths.

    Raises:
        UserError: a path is asked for that does not exist.
    """
    groups = [path for _, path in paths.groupby("path", sort=True)]
    whole = {int(path["path"].iloc[0]): _entry(path, tokens or {}, link) for path in groups}
    chosen = _chosen(whole, features, data_bytes)
    layers = sorted(int(layer) for layer in paths["layer"].unique())
    data = htmlsafe_json_dumps({"layers": layers, "paths": [whole[number] for number in chosen]}, dumps)
    return html_page("paths", title, shown=len(chosen), all=len(whole), layers=layers, data=data)


def _entry(path: pd.DataFrame, tokens: Mapping[tuple[int, int], str], link: Link) -> dict[str, list[Any]]:
    places = list(zip(path["layer"].tolist(), path["feature"].tolist(), strict=True))
    entry: dict[str, list[Any]] = {"feature": [feature for _, feature in places]}
    for name, column in STEPS.items():
        entry[name] = [None if math.isnan(value) else float(f"{value:.3g}") for value in path[column].astype(float)]
    texts, links = [tokens.get(place, "") for place in places], [link(*place) for place in places]
    return entry | ({"tokens": texts} if any(texts) else {}) | ({"link": links} if any(links) else {})


def _chosen(entries: Mapping[int, dict[str, list[Any]]], features: Sequence[int], room: int) -> list[int]:
    """The paths asked for, or as many as fit; ascending."""
    if unknown := set(features) - entries.keys():
        raise UserError(f"no path begins at feature {min(unknown)}: features are {min(entries)}..{max(entries)}")
    sizes = [len(htmlsafe_json_dumps(entry, dumps)) + 1 for entry in entries.values()]
    if features or sum(sizes) <= room:
        return sorted(set(features) or entries)
    known = {number: [value for value in entry["mse"] if value is not None] for number, entry in entries.items()}
    ranked = sorted(entries, key=lambda number: float(np.mean(known[number])) if known[number] else math.inf)
    places = np.unique(np.linspace(0, len(ranked) - 1, max(1, room // max(sizes))).round().astype(int))
    return sorted(ranked[place] for place in places)
