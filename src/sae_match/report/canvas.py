"""Figures without global state: size, fonts and writing. No pyplot, so any backend and any thread will do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

from sae_match.files import atomic_path

COLUMN_INCHES = (3.5, 2.9)
OVERLAY_INCHES = (5.0, 3.6)
PAGE_INCHES = (7.2, 5.8)
DPI = 200

VECTOR_FORMATS = ("svg", "pdf")
_BARE_METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
_beside: ContextVar[tuple[str, ...]] = ContextVar("formats written beside each PNG", default=())

_RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    # Names inside an SVG are hashes with a random salt unless one is given; texts in a PDF stay texts.
    "svg.hashsalt": "sae_match",
    "pdf.fonttype": 42,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Matplotlib's settings for the block: artists take their sizes from them when they are made."""
    with rc_context(_RC):
        yield


def new_figure(size: tuple[float, float] = COLUMN_INCHES) -> Figure:
    """An empty figure whose parts are laid out so that nothing overlaps."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend_below(figure: FigureBase, ax: Axes, wide: int = 24) -> None:
    """The legend of `ax` under it, where it covers no curve: two columns, or one if an entry has more than `wide`
    characters."""
    handles, names = ax.get_legend_handles_labels()
    columns = 1 if max(map(len, names), default=0) > wide else min(2, len(names) or 1)
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


@contextmanager
def also_written(formats: Sequence[str]) -> Iterator[None]:
    """Inside the block `save` writes these vector formats beside each PNG.

    Raises:
        ValueError: a format is not in `VECTOR_FORMATS`.
    """
    if unknown := set(formats) - set(VECTOR_FORMATS):
        raise ValueError(f"unknown figure formats {sorted(unknown)}; there are {VECTOR_FORMATS}")
    token = _beside.set(tuple(formats))
    try:
        yield
    finally:
        _beside.reset(token)


def _as_written(figure: Figure) -> None:
    """Texts with dollar signs that are no formula, as a job's settings may be, are drawn as they are."""
    parser = MathTextParser("path")
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text().count("$") > 1:
            try:
                parser.parse(text.get_text())
            except ValueError:
                text.set_parse_math(False)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG at 200 dpi, and the formats of `also_written` beside it, atomically; the same figure gives the same
    bytes. Returns the PNG's path."""
    _as_written(figure)
    for kind in ("png", *_beside.get()):
        with atomic_path(Path(path).with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=_BARE_METADATA[kind])
    return Path(path)
