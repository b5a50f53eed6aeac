"""Seconds and memory against width, on logarithmic axes."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_match.files import atomic_path
from sae_match.report.canvas import new_figure, paper_style, save
from sae_match.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Look
from tests.benchmarks.derive import Row
from tests.benchmarks.methods import methods

YELLOW = "#F0E442"
SIZE = (7.2, 4.0)
STYLES = {
    "certified": Look(BLUE, "o", "-", ""),
    "certified-uncached": Look(SKY, "o", "-", ""),
    "certified-bfloat16": Look(BLUE, "s", "-", ""),
    "scipy-product": Look(VERMILION, "s", "-", ""),
    "scipy-distance": Look(ORANGE, "s", "-", ""),
    "lapjv": Look(GREEN, "^", "-", ""),
    "lapjvs": Look(GREEN, "<", ":", ""),
    "lapjvc": Look(GREEN, ">", ":", ""),
    "lapjvr": Look(BLACK, "v", "-", ""),
    "lapjvh": Look(BLACK, "D", "-", ""),
    "ortools-knn": Look(PURPLE, "X", "--", ""),
    "scipy-sparse-knn": Look(YELLOW, "X", "--", ""),
    "greedy": Look(GREY, "P", "--", ""),
    "cosine": Look(BLUE, "P", ":", ""),
    "soft": Look(PURPLE, "d", "-.", ""),
}
"""Solid: exact; dashed: approximate. One hue per library."""
DRAWN = ("certified", "certified-uncached", "scipy-product", "scipy-distance", "lapjv", "lapjvh", "ortools-knn",
         "greedy", "soft")  # fmt: skip
"""What the figure shows unless told otherwise: nine curves can be told apart."""
SHORTEST_S, LEAST_GIB = 1e-4, 1e-3


def draw(family: list[Row], names: list[str], title: str) -> Figure:
    """The two panels of one family of problems. An arrow marks the first width at which a method
    broke a limit."""
    with paper_style(), rc_context({"axes.grid.axis": "both", "axes.grid.which": "major"}):
        figure = new_figure(SIZE)
        figure.suptitle(title)
        time, memory = figure.subplots(1, 2)
        _reference(time, family)
        widths = sorted({row.spec.width for row in family})
        gib = [8 * width**2 / 2**30 for width in widths]
        bare = memory.plot(widths, gib, color=GREY, linestyle="-.", linewidth=0.8, label="one float64 F × F matrix")
        for name in names:
            mine = [row for row in family if row.name == name]
            _curve(time, mine, seconds=True)
            _curve(memory, mine, seconds=False)
        _axes(time, widths, "assignment [s]")
        _axes(memory, widths, "peak memory beside the SAEs [GiB]")
        handles, labels = time.get_legend_handles_labels()
        labels.insert(1, str(bare[0].get_label()))
        figure.legend([handles[0], bare[0], *handles[1:]], labels, loc="outside lower center", ncols=3)
        return figure


def _reference(ax: Axes, family: list[Row]) -> None:
    points = {row.spec.width: row.product for row in family if row.product is not None}
    widths = sorted(points)
    ax.plot(widths, [points[width] for width in widths], color=GREY, linestyle=":", linewidth=2.0,
            label="similarity product, float32")  # fmt: skip


def _curve(ax: Axes, mine: list[Row], *, seconds: bool) -> None:
    """One method: its values, and an arrow where it broke the limit that this panel is about."""
    if not mine:
        return
    style, label = STYLES[mine[0].name], methods()[mine[0].name].label
    points: list[tuple[int, float]] = []
    for row in mine:
        if row.seconds is not None and row.peak_gib is not None:
            value = max(row.seconds.median, SHORTEST_S) if seconds else max(row.peak_gib, LEAST_GIB)
            points.append((row.spec.width, value))
    ax.plot([x for x, _ in points], [y for _, y in points], color=style.color, marker=style.marker,
            linestyle=style.linestyle, label=label, markeredgecolor="white", markeredgewidth=0.4)  # fmt: skip
    broken = [(row.spec.width, limit) for row in mine if (limit := _limit(row, seconds)) is not None]
    if broken:
        width, limit = broken[0]
        ax.plot([width], [limit], color=style.color, marker=r"$\uparrow$", markersize=8, linestyle="")
        if points:
            ends = [points[-1], (width, limit)]
            ax.plot(*zip(*ends, strict=True), color=style.color, linestyle=":", linewidth=0.8)


def _limit(row: Row, seconds: bool) -> float | None:
    """Where the arrow of a broken limit stands; None where it was another limit, or was not tried."""
    record = row.record
    if seconds:
        tried = record["status"] == "time" and "inferred_from" not in record
        return float(record["time_limit_s"]) if tried else None
    if record["status"] != "memory":
        return None
    return float(max(record.get("least_gib", 0.0), record["memory_limit_gib"]))


def _axes(ax: Axes, widths: list[int], label: str) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(widths, [f"{width:,}" for width in widths], rotation=30)
    ax.minorticks_off()
    ax.set_xlabel("features per SAE, F")
    ax.set_ylabel(label)


def write(figure: Figure, stem: Path) -> list[Path]:
    """PNG and SVG; the same figure gives the same bytes."""
    png, svg = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "svg"))
    save(figure, png)
    with rc_context({"svg.hashsalt": "sae_match"}), atomic_path(svg) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
    return [png, svg]
