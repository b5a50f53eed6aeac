"""Figures without global state: size, fonts, styles of curves, and writing. No pyplot, so any backend works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

from sae_match.files import atomic_path

from ..style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VARIANTS, VERMILION, Look

COLUMN_INCHES = (3.5, 2.9)
OVERLAY_INCHES = (5.0, 3.6)
PAGE_INCHES = (7.2, 5.8)
DPI = 200
LEGEND_LINE_INCHES = 0.16
AXIS_CHARACTERS = 30
"""What fits beside an axis of one column's height; a longer label has its unit on a second line."""

PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Okabe and Ito (2008), legible with any color vision; yellow is left out, too pale on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":")

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


@contextmanager
def drawing(path: Path, size: tuple[float, float] = COLUMN_INCHES, title: str | None = None) -> Iterator[Figure]:
    """A new figure to draw on in the block; it gets its title, and is saved, at the block's end."""
    with paper_style():
        figure = new_figure(size)
        yield figure
        if title:
            figure.suptitle(title)
        save(figure, path)


@contextmanager
def one_panel(
    path: Path, title: str | None, size: tuple[float, float] = COLUMN_INCHES, wide: int = 24
) -> Iterator[Axes]:
    """The axes of a new figure to draw on in the block, saved at its end with title and legend (`legend_below`)."""
    with drawing(path, size) as figure:
        ax = figure.subplots()
        yield ax
        make_room(figure, legend_below(figure, ax, wide))
        if title:
            ax.set_title(title)


def plot_panels(
    path: Path,
    panels: Sequence[str],
    draw: Callable[[Axes, str], None],
    title: str | None = None,
    own_legends: bool = False,
) -> Path:
    """A panel of one column's size per name, two side by side. The first one's legend is in the place that is left, or
    below; with `own_legends` each one's is below itself."""
    rows, columns = grid(len(panels))
    with drawing(path, (COLUMN_INCHES[0] * columns, COLUMN_INCHES[1] * rows), title) as figure:
        if own_legends:
            parts, lines = np.asarray(figure.subfigures(rows, columns, squeeze=False)).ravel(), 0
            for part, name in zip(parts, panels, strict=False):
                ax = part.subplots()
                draw(ax, name)
                lines = max(lines, legend_below(part, ax))
            make_room(figure, lines, rows)
            return path
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for ax, name in zip(axes, panels, strict=False):
            draw(ax, name)
        if len(panels) < rows * columns:
            axes[-1].set_axis_off()
            axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center")
        else:
            make_room(figure, legend_below(figure, axes[0], wide=60))
    return path


def grid(panels: int) -> tuple[int, int]:
    """Rows and columns of panels that fit on a page."""
    return -(-panels // 2), min(panels, 2)


def legend_below(figure: FigureBase, ax: Axes, wide: int = 24) -> int:
    """The legend of `ax` under it, where it covers no curve: two columns, or one if an entry has more than `wide`
    characters. Returns its number of lines."""
    handles, names = ax.get_legend_handles_labels()
    columns = 1 if max(map(len, names), default=0) > wide else 2
    if names:
        figure.legend(handles, names, loc="outside lower center", ncols=columns)
    return -(-len(names) // columns)


def make_room(figure: Figure, lines: int, rows: int = 1) -> None:
    """Let the figure grow by what the legends of each row of panels, of `lines` lines, have beyond two, so that the
    axes keep their height."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + rows * max(0, lines - 2) * LEGEND_LINE_INCHES)


def axis_label(text: str) -> str:
    """A label with its unit, on two lines where it is long."""
    return text if len(text) <= AXIS_CHARACTERS else text.replace(" [", "\n[")


def is_beyond(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether all values are further from the others than the others are from each other: on one axis with them,
    the others would look alike."""
    if not len(values) or not len(others):
        return False
    low, high = min(others), max(others)
    spread = (high - low) or abs(high) or 1.0
    return max(values) < low - spread or min(values) > high + spread


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


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG at 200 dpi, and the formats of `also_written` beside it, atomically; the same figure gives the same
    bytes. Returns the PNG's path."""
    _draw_plain_dollars(figure)
    for kind in ("png", *_beside.get()):
        with atomic_path(Path(path).with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=_BARE_METADATA[kind])
    return Path(path)


def _draw_plain_dollars(figure: Figure) -> None:
    """Draw texts with dollar signs that are no formula, as a job's settings may be, as they are."""
    parser = MathTextParser("path")
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text().count("$") > 1:
            try:
                parser.parse(text.get_text())
            except ValueError:
                text.set_parse_math(False)


def styles(variants: Sequence[str], known: Mapping[str, Look] = VARIANTS) -> dict[str, Look]:
    """A style per variant, known ones first in their fixed order. Unknown ones, in the order given, take colors that no
    known one has, then other dash patterns of every color."""
    found = {name: known[name] for name in known if name in variants}
    colors, taken = {look.color for look in found.values()}, {look[:3] for look in found.values()}
    pairs = list(zip(PALETTE, MARKERS, strict=True))
    looks = [(*pair, DASHES[0]) for pair in pairs if pair[0] not in colors]
    looks += [(*pair, dashes) for dashes in DASHES[1:] for pair in pairs if (*pair, dashes) not in taken]
    unknown = [name for name in dict.fromkeys(variants) if name not in known]
    return found | {
        name: Look(*looks[index % len(looks)], label=name.replace("_", " ")) for index, name in enumerate(unknown)
    }


def references(variants: Sequence[str], known: Mapping[str, Look] = VARIANTS) -> dict[str, Look]:
    """The variants' styles in grey with thin dashes: the background of the curves that a figure is about."""
    return {name: look._replace(color=GREY, linestyle=":") for name, look in styles(variants, known).items()}


def factor_styles(settings: Mapping[str, Sequence[str]]) -> dict[str, Look]:
    """A style per label: one color each if the palette has enough. Otherwise the color shows the level of the setting
    with the most levels that the palette can show, and marker and dashes show the rest.

    Args:
        settings: label -> values of the settings that vary, as many for every label.
    """
    levels = [list(dict.fromkeys(column)) for column in zip(*settings.values(), strict=True)]
    fitting = [place for place, found in enumerate(levels) if 1 < len(found) <= len(PALETTE)]
    if len(settings) <= len(PALETTE) or not fitting:
        return styles(list(settings))
    place = max(fitting, key=lambda index: len(levels[index]))
    rests = {label: (*values[:place], *values[place + 1 :]) for label, values in settings.items()}
    order = list(dict.fromkeys(rests.values()))
    looks: dict[str, Look] = {}
    for label, values in settings.items():
        rest = order.index(rests[label])
        marker, dashes = MARKERS[rest % len(MARKERS)], DASHES[rest % len(DASHES)]
        looks[label] = Look(PALETTE[levels[place].index(values[place])], marker, dashes, label)
    return looks
