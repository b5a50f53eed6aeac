"""The features of one layer pair: how their decoder MSE is distributed, with example pairs (Figs. 5 and 6)."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont, get_font

from ..judging.descriptions import CONTEXTS
from ..record.contents import FEATURES, JUDGEMENTS, TOP_TOKENS
from ..style import BLUE, GREEN, ORANGE, VERMILION
from .canvas import PAGE_INCHES, new_figure, paper_style, save
from .panels import draw_histogram
from .record_paths import top_tokens
from .records import Record

EXAMPLES = 8
TOKEN_CHARACTERS = 46
"""What of a feature's tokens fits into a column of the figure."""
LABELS = {"same": GREEN, "maybe": ORANGE, "different": VERMILION}
EXAMPLE_COLUMNS = (
    "mark", "layer", "feature", "layer_to", "partner", "mse_W_dec", "matching_score", "judge", "tokens",
    "partner_tokens",
)  # fmt: skip


def write_pair_figures(records: Sequence[Record], directory: Path) -> list[Path]:
    """`pairs.png` and `pairs.csv` (the examples) of every record of a single layer pair with top tokens or judgements;
    `pairs_N` where there are several. Returns the figures."""
    found = [(record, shown) for record in records if (shown := pair_examples_of(record.path)) is not None]
    written = []
    for number, (_, (features, examples)) in enumerate(found):
        stem = "pairs" if len(found) == 1 else f"pairs_{number}"
        written.append(plot_pair_examples(features, examples, directory / f"{stem}.png"))
        examples.to_csv(directory / f"{stem}.csv", index=False, lineterminator="\n")
    return written


def pair_examples_of(directory: Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The features of a record's one layer pair with the judge's level, and the examples; None where the record has
    several pairs, or knows nothing of what features mean."""
    described = (directory / TOP_TOKENS).is_file() or (directory / JUDGEMENTS).is_file()
    if not described or not (directory / FEATURES).is_file():
        return None
    features = pd.read_parquet(directory / FEATURES)
    if features["layer"].nunique() != 1:
        return None
    judged = _judged(directory / JUDGEMENTS)
    levels = {entry["feature"]: entry["level"] for entry in judged}
    features = features.assign(judge=features["feature"].map(levels).astype(object))
    return features, pair_examples(features, _explanations(judged) or top_tokens(directory / TOP_TOKENS))


def _judged(path: Path) -> list[dict[str, Any]]:
    """The lines of judgements.jsonl on matched neighbours."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    entries = [json.loads(line) for line in lines]
    return [e for e in entries if e["variant"] == "matched" and e["layer_to"] - e["layer"] == 1]


def _explanations(judged: list[dict[str, Any]]) -> dict[tuple[int, int], str]:
    """What the judged features mean, by layer and feature, where somebody explained them (not their top contexts)."""
    found = {
        (entry[layer], entry[feature]): entry.get(text) or ""
        for entry in judged
        for layer, feature, text in (("layer", "feature", "text_a"), ("layer_to", "partner", "text_b"))
    }
    return {place: text for place, text in found.items() if text and not text.startswith(CONTEXTS)}


def pair_examples(features: pd.DataFrame, tokens: Mapping[tuple[int, int], str], count: int = EXAMPLES) -> pd.DataFrame:
    """Pairs evenly spaced in the ranking by decoder MSE, the lowest first, marked A, B, ...

    Only pairs whose two features both have tokens are chosen (all, where no tokens are known).

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
    places = np.unique((np.linspace(0.02, 0.98, count) * max(len(ranked) - 1, 0)).round().astype(int))
    chosen = ranked.iloc[places] if len(ranked) else ranked
    marks = [chr(ord("A") + i) for i in range(len(chosen))]
    return chosen.assign(mark=marks).reindex(columns=list(EXAMPLE_COLUMNS)).reset_index(drop=True)


def plot_pair_examples(features: pd.DataFrame, examples: pd.DataFrame, path: Path) -> Path:
    """Histogram of the decoder MSE with the examples marked, their top tokens below; where pairs were judged, the MSE
    by the judge's answer.

    Args:
        features: rows of one layer pair, as in features.parquet, with `judge`.
        examples: as from `pair_examples`.
    """
    judged = features.dropna(subset="judge")
    with paper_style():
        figure = new_figure((PAGE_INCHES[0], 3.1 + 0.2 * len(examples)))
        top, below = np.asarray(figure.subfigures(2, 1, height_ratios=(2.7, 0.4 + 0.2 * len(examples)))).ravel()
        axes = top.subplots(1, 2, width_ratios=(2, 1)) if len(judged) else [top.subplots()]
        draw_marked_histogram(axes[0], features, examples)
        if len(judged):
            draw_mse_by_level(axes[1], judged)
        _write_examples(below.subplots(), examples)
        layer = int(features["layer"].iloc[0])
        figure.suptitle(f"layers {layer} → {layer + 1}")
        return save(figure, path)


def draw_marked_histogram(ax: Axes, features: pd.DataFrame, examples: pd.DataFrame) -> None:
    """Counts of the decoder MSE of matched pairs; a letter above the axes at each example's."""
    draw_histogram(ax, {"matched": features["mse_W_dec"].to_numpy(dtype=float)})
    for mark, mse in zip(examples["mark"], examples["mse_W_dec"], strict=True):
        ax.annotate(mark, (mse, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7)
        ax.plot([mse, mse], [0.0, 1.0], transform=ax.get_xaxis_transform(), color=BLUE, linewidth=0.6, alpha=0.6)
    ax.set_xlabel("decoder MSE of a pair [folded units²]")
    ax.legend(loc="upper left")


def draw_mse_by_level(ax: Axes, judged: pd.DataFrame) -> None:
    """The decoder MSE of the judged pairs by the judge's level: every pair a point, the median a line."""
    shown = [name for name in LABELS if (judged["judge"] == name).any()]
    for place, name in enumerate(shown):
        values = np.sort(judged.loc[judged["judge"] == name, "mse_W_dec"].to_numpy(dtype=float))
        # Spread by rank, not at random: the same record gives the same figure.
        spread = 0.5 * ((np.arange(len(values)) * 0.618034) % 1 - 0.5)
        ax.plot(place + spread, values, ".", color=LABELS[name], markersize=3, alpha=0.6)
        ax.plot([place - 0.32, place + 0.32], [np.median(values)] * 2, color="black", linewidth=1.4)
    counts = [int((judged["judge"] == name).sum()) for name in shown]
    ax.set_xticks(range(len(shown)), [f"{name}\n(n = {n})" for name, n in zip(shown, counts, strict=True)])
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
        for x, text in zip(columns, line, strict=True):
            y = 1 - (i + 0.5) / len(lines)
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
