"""Distributions over features: of one layer pair their decoder MSE, with example pairs (the paper's Figs. 5, 6), and of
two seeds the cosines of partners."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont, get_font

from ..files import reading
from ..judging.descriptions import CONTEXTS
from ..record.contents import FEATURES, JUDGEMENTS, TOP_TOKENS
from ..style import BLUE, GREEN, GREY, ORANGE, VERMILION
from .canvas import PAGE_INCHES, drawing, one_panel, styles
from .records import Record
from .tables import write_csv

EXAMPLES = 8
SHOWN_TOKENS = 8
TOKEN_CHARACTERS = 46
"""What of a feature's tokens fits into a column of the figure."""
LEVELS = {"same": GREEN, "maybe": ORANGE, "different": VERMILION}
"""The judge's answers and their colors."""
EXAMPLE_COLUMNS = (
    "mark", "layer", "feature", "layer_to", "partner", "mse_W_dec", "matching_score", "judge", "tokens",
    "partner_tokens",
)  # fmt: skip
COSINES = {"cosine": ("other seeds", BLUE), "cosine_rotated": ("rotated", GREY), "cosine_random": ("random", ORANGE)}
"""Column of stability.parquet -> its name in the legend, and color."""
BINS = 50
_PAIR_TYPES = {**dict.fromkeys(["layer", "feature", "layer_to", "partner"], int), "mse_W_dec": float}
MSE_LABEL = "decoder MSE of a pair [folded units²]"


def plot_mse_histogram(
    values: Mapping[str, Float[np.ndarray, " features"]], path: Path, title: str | None = None
) -> Path:
    """Per-feature decoder MSE by variant (matched against random, say).

    Raises:
        ValueError: no values, or a value is not finite.
    """
    with one_panel(path, title) as ax:
        draw_histogram(ax, values)
        ax.set_xlabel(MSE_LABEL)
    return path


def draw_histogram(ax: Axes, values: Mapping[str, Float[np.ndarray, " features"]], bins: int = BINS) -> None:
    """Counts of per-feature values by variant on common bins (logarithmic where all are positive), medians marked.

    A variant without values (nothing was matched) is left out.

    Raises:
        ValueError: no values, or a value is not finite.
    """
    arrays = {name: np.asarray(array, dtype=float).ravel() for name, array in values.items()}
    data = {name: array for name, array in arrays.items() if array.size}
    joined = np.concatenate([*data.values()]) if data else np.empty(0)
    if not joined.size or not np.isfinite(joined).all():
        raise ValueError(f"histogram of {list(values)}: expected finite values, got {joined.size} with NaN or none")
    low, high = float(joined.min()), float(joined.max())
    logarithmic = 0 < low < high
    edges = np.geomspace(low, high, bins + 1) if logarithmic else np.histogram_bin_edges(joined, bins)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # geomspace may round the ends inwards
    for name, look in styles(list(data)).items():
        median = float(np.median(data[name]))
        label = f"{look.label} (median {median:.3g}, n = {data[name].size:,})"
        counts, _ = np.histogram(data[name], edges)
        ax.stairs(counts, edges, fill=True, color=look.color, alpha=0.25)
        ax.stairs(counts, edges, color=look.color, linestyle=look.linestyle, label=label, linewidth=1.2)
        ax.axvline(median, color=look.color, linestyle=":", linewidth=1.2)
    if logarithmic:
        ax.set_xscale("log")
    ax.set_ylabel("features")


def write_pair_figures(records: Sequence[Record], directory: Path) -> list[Path]:
    """`pairs.png` and `pairs.csv` (the examples) of every record of a single layer pair with top tokens or judgements;
    `pairs_N` where there are several. Returns the figures."""
    readable = [record.path for record in records if record.state != "unreadable"]
    found = [shown for path in readable if (shown := pair_examples_of(path)) is not None]
    written = []
    for number, (features, examples) in enumerate(found):
        path = directory / ("pairs.png" if len(found) == 1 else f"pairs_{number}.png")
        written.append(plot_pair_examples(features, examples, path))
        write_csv(path.with_suffix(".csv"), examples)
    return written


def pair_examples_of(directory: Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The features of a record's one layer pair with the judge's level, and the examples; None where the record has
    several pairs, or knows nothing of what features mean."""
    described = (directory / TOP_TOKENS).is_file() or (directory / JUDGEMENTS).is_file()
    if not described or not (directory / FEATURES).is_file():
        return None
    with reading(directory / FEATURES, "table of features"):
        features = pd.read_parquet(directory / FEATURES).astype(_PAIR_TYPES)
    if features["layer"].nunique() != 1:
        return None
    judged = _judged_neighbors(directory / JUDGEMENTS, int(features["layer_to"].iloc[0]))
    levels = {entry["feature"]: entry["level"] for entry in judged}
    features = features.assign(judge=features["feature"].map(levels).astype(object))
    return features, pair_examples(features, _explanations(judged) or top_tokens(directory / TOP_TOKENS))


def _judged_neighbors(path: Path, layer_to: int) -> list[dict[str, Any]]:
    """The lines of judgements.jsonl on matched neighbors, of which this is the second layer."""
    if not path.is_file():
        return []
    with reading(path, "list of judgements"):
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [e for e in entries if e["variant"] == "matched" and e["layer_to"] == layer_to]


def _explanations(judged: list[dict[str, Any]]) -> dict[tuple[int, int], str]:
    """What the judged features mean, by layer and feature, where somebody explained them (not their top contexts)."""
    found = {
        (entry[layer], entry[feature]): entry.get(text) or ""
        for entry in judged
        for layer, feature, text in (("layer", "feature", "text_a"), ("layer_to", "partner", "text_b"))
    }
    return {place: text for place, text in found.items() if text and not text.startswith(CONTEXTS)}


def top_tokens(path: Path) -> dict[tuple[int, int], str]:
    """The first tokens of every feature as one text, by layer and feature; empty where the record has no such table."""
    if not path.is_file():
        return {}
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for layer, feature, token in read_table(path, ["layer", "feature", "token"]).to_numpy(dtype=object):
        found[int(layer), int(feature)].append(str(token))
    return {place: " · ".join(texts[:SHOWN_TOKENS]) for place, texts in found.items()}


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Columns of a Parquet file.

    Raises:
        UserError: it is damaged, or lacks a column.
    """
    with reading(path, f"table with {', '.join(columns)}"):
        return pd.read_parquet(path, columns=columns)


def pair_examples(features: pd.DataFrame, tokens: Mapping[tuple[int, int], str]) -> pd.DataFrame:
    """Pairs evenly spaced in the ranking by decoder MSE, the lowest first, marked A, B, ... Only pairs whose two
    features both have tokens are chosen (all, where no tokens are known).

    Args:
        features: rows of one layer pair, as in features.parquet, with `judge`.
        tokens: top tokens, or what a feature means, by layer and feature.
    """
    table = features.assign(
        tokens=[tokens.get(place, "") for place in zip(features["layer"], features["feature"], strict=True)],
        partner_tokens=[tokens.get(place, "") for place in zip(features["layer_to"], features["partner"], strict=True)],
    )
    known = table[(table["tokens"] != "") & (table["partner_tokens"] != "")] if tokens else table
    ranked = known.sort_values(["mse_W_dec", "feature"], kind="stable")
    places = np.unique((np.linspace(0.02, 0.98, EXAMPLES) * max(len(ranked) - 1, 0)).round().astype(int))
    chosen = ranked.iloc[places] if len(ranked) else ranked
    marks = [chr(ord("A") + i) for i in range(len(chosen))]
    return chosen.assign(mark=marks).reindex(columns=list(EXAMPLE_COLUMNS)).reset_index(drop=True)


def plot_pair_examples(features: pd.DataFrame, examples: pd.DataFrame, path: Path) -> Path:
    """Histogram of the decoder MSE with the examples marked, their top tokens below; where pairs were judged, the MSE
    by the judge's answer. Features and examples as from `pair_examples_of`."""
    judged = features.dropna(subset="judge")
    layer, layer_to = (int(features[side].iloc[0]) for side in ("layer", "layer_to"))
    lines = 0.2 * len(examples)
    with drawing(path, (PAGE_INCHES[0], 3.1 + lines), f"layers {layer} → {layer_to}") as figure:
        top, below = np.asarray(figure.subfigures(2, 1, height_ratios=(2.7, 0.4 + lines))).ravel()
        axes = top.subplots(1, 2, width_ratios=(2, 1)) if len(judged) else [top.subplots()]
        _draw_marked_histogram(axes[0], features, examples)
        if len(judged):
            draw_mse_by_level(axes[1], judged)
        _write_examples(below.subplots(), examples)
    return path


def _draw_marked_histogram(ax: Axes, features: pd.DataFrame, examples: pd.DataFrame) -> None:
    """Counts of the decoder MSE of matched pairs; a letter above the axes at each example's."""
    draw_histogram(ax, {"matched": features["mse_W_dec"].to_numpy(dtype=float)})
    for mark, mse in zip(examples["mark"], examples["mse_W_dec"], strict=True):
        ax.annotate(mark, (mse, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7)
        ax.plot([mse, mse], [0.0, 1.0], transform=ax.get_xaxis_transform(), color=BLUE, linewidth=0.6, alpha=0.6)
    ax.set_xlabel(MSE_LABEL)
    ax.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")


def draw_mse_by_level(ax: Axes, judged: pd.DataFrame) -> None:
    """The decoder MSE of the judged pairs by the judge's level: every pair a point, the median a line."""
    values = {name: np.sort(judged.loc[judged["judge"] == name, "mse_W_dec"].to_numpy(dtype=float)) for name in LEVELS}
    shown = [name for name in LEVELS if len(values[name])]
    for place, name in enumerate(shown):
        # Spread by rank, not at random: the same record gives the same figure.
        spread = 0.5 * ((np.arange(len(values[name])) * 0.618034) % 1 - 0.5)
        ax.plot(place + spread, values[name], ".", color=LEVELS[name], markersize=3, alpha=0.6)
        ax.plot([place - 0.32, place + 0.32], [np.median(values[name])] * 2, color="black", linewidth=1.4)
    ax.set_xticks(range(len(shown)), [f"{name}\n(n = {len(values[name])})" for name in shown])
    ax.set_xlim(-0.6, len(shown) - 0.4)
    ax.set_ylabel("decoder MSE [folded units²]")
    if (judged["mse_W_dec"] > 0).all():
        ax.set_yscale("log")


def _write_examples(ax: Axes, examples: pd.DataFrame) -> None:
    """The examples as lines of text: mark, MSE, score, the two features and their tokens."""
    ax.set_axis_off()
    columns = (0.0, 0.03, 0.10, 0.17, 0.32, 0.67)
    head = ("", "MSE", "score", "features", "top tokens or explanation", "the partner's")
    lines = [head, *(_line(row) for row in examples.to_dict("records"))]
    for i, line in enumerate(lines):
        y = 1 - (i + 0.5) / len(lines)
        for x, text in zip(columns, line, strict=True):
            ax.text(x, y, text, transform=ax.transAxes, va="center", fontsize=6.2, parse_math=False)


def _line(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    mse, score = float(row["mse_W_dec"]), float(row["matching_score"])
    judge = f" {row['judge']}" if isinstance(row["judge"], str) else ""
    return (
        str(row["mark"]), f"{mse:.3g}", "" if np.isnan(score) else f"{score:.2f}",
        f"{row['feature']} → {row['partner']}{judge}", _fitted(str(row["tokens"])), _fitted(str(row["partner_tokens"])),
    )  # fmt: skip


def _fitted(text: str) -> str:
    """Cut to the column, and without letters that the figure's font does not have."""
    font = get_font(findfont("DejaVu Sans"))
    known = "".join(letter if font.get_char_index(ord(letter)) else "□" for letter in text)
    return known if len(known) <= TOKEN_CHARACTERS else known[: TOKEN_CHARACTERS - 1] + "…"


def plot_stability(table: pd.DataFrame, path: Path) -> Path:
    """Histograms of |cosine| over the features of the job's own SAEs and the other seeds, medians marked.

    Args:
        table: the content of stability.parquet.
    """
    edges = np.linspace(0, 1, BINS + 1)
    with one_panel(path, None, wide=32) as ax:
        for column, (name, color) in COSINES.items():
            values = table[column].dropna().to_numpy()
            median = float(np.median(values))
            shares = np.histogram(values, edges)[0] / len(values)
            ax.stairs(shares, edges, fill=True, color=color, alpha=0.25)
            ax.stairs(shares, edges, color=color, label=f"{name} (median {median:.2g})", linewidth=1.2)
            ax.axvline(median, color=color, linestyle=":", linewidth=1.2)
        ax.set_xlabel("|decoder cosine| of a feature and its partner")
        ax.set_ylabel("share of features")
    return path
