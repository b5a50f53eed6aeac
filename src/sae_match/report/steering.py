"""Interventions along flows in a report: a table, a figure and texts of what they do, beside random flows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..files import reading
from ..metrics.bootstrap import Bootstrap, Estimate
from ..record.contents import STEERING, STEERING_EXAMPLES
from ..style import BLUE, GREY
from .canvas import plot_panels
from .figures import Drawn
from .records import Record
from .resampling import SAMPLES
from .tables import ABSENT, Cell, Table, format_row, format_value, write_csv

FLOW, RANDOM = "flow", "random"
"""Kinds of a flow: matched features, and others of equal activity."""
LOOKS = {FLOW: ("flows", BLUE, "o"), RANDOM: ("random flows of equal activity", GREY, "s")}
RATIOS = {
    "all_over_first": "all layers / first layer",
    "all_over_sum": "all layers / sum of single layers",
    "flow_over_random": "flows / random flows, all layers",
}
COLUMNS = {
    "KL, first layer": ("kl", True),
    "KL, all layers": ("kl", False),
    **{name: (metric, False) for metric, name in RATIOS.items()},
    "Δ loss, all layers": ("loss", False),
    "later features": ("later", True),
    "other features": ("others", True),
}
"""Of the table: the number, and whether it is that of the first layer alone."""
NOTE = (
    "Features scaled by a factor (0 = removed) at one layer, or at all layers of a flow: the chain of matched features "
    "from one in the span's first layer. Random flows have at each layer another feature, about as active in the same "
    "contexts. KL: divergence of the next-token distribution from the clean model's, nats per token from the first on "
    "which the flow fires. All / sum: 1 where the layers' features act independently, less where removing one removes "
    "the others with it. A scale beyond 1 at all layers compounds where a flow hands on what it carries: each layer "
    "scales what the one before has scaled. Later features: relative change of what the flow's features beyond the "
    "first layer write after an intervention at the first layer alone, and of all other sampled features of those "
    "layers. [a, b]: 95 % intervals, bootstrap over flows; flows and random flows share their draws."
)
EXAMPLES_NOTE = (
    "Greedy continuations where scaling a flow at all layers moves the prediction most, of each scale the flows with "
    "the largest divergence."
)


class Effect(NamedTuple):
    """What a number is: its name, the kind of flow, the scale, and the layer; None for all layers at once."""

    metric: str
    kind: str
    scale: float
    layer: int | None


def steering_effects(table: pd.DataFrame, samples: int = SAMPLES, seed: int = 0) -> dict[Effect, Estimate]:
    """Means over flows with resamples of the flows, which all numbers share.

    `kl`, `loss`, `later` and `others` as in steering.parquet, means over the flows that have the number, by layer and
    at all layers; `all_over_first`, `all_over_sum`: mean `kl` of all layers at once / of the first one, / of the sum
    over single layers; `flow_over_random`: mean `kl` of flows / of random flows, all layers at once.

    Args:
        table: the content of steering.parquet.
    """
    flows = sorted(set(table["flow"]))
    bootstrap = Bootstrap(len(flows), samples, seed)
    found: dict[Effect, Estimate] = {}
    whole: dict[tuple[str, float], np.ndarray] = {}
    for (kind, scale), part in _groups(table, "kind", "scale"):
        layers: list[int | None] = [*sorted(set(part["layer"].dropna().astype(int))), None]
        kl: dict[int | None, np.ndarray] = {}
        for layer in layers:
            rows = part[part["layer"].isna() if layer is None else part["layer"] == layer]
            rows = rows.set_index("flow").reindex(flows)
            kl[layer] = rows["kl"].fillna(0.0).to_numpy()
            for metric in ("kl", "loss", "later", "others"):
                values = rows[metric].to_numpy(dtype=float)
                there = np.isfinite(values)
                if there.any():
                    found[Effect(metric, kind, scale, layer)] = bootstrap.ratio(np.where(there, values, 0.0), there)
        whole[kind, scale] = kl[None]
        single = [values for layer, values in kl.items() if layer is not None]
        for metric, values in (("all_over_first", single[0]), ("all_over_sum", np.sum(single, axis=0))):
            found[Effect(metric, kind, scale, None)] = bootstrap.ratio(kl[None], values)
    for (kind, scale), values in whole.items():
        if kind == FLOW:
            random = whole[RANDOM, scale]
            found[Effect("flow_over_random", FLOW, scale, None)] = bootstrap.ratio(values, random)
    return found


def _groups(frame: pd.DataFrame, *columns: str) -> list[tuple[Any, pd.DataFrame]]:
    return list(frame.groupby(list(columns), sort=False))


def effects_rows(job: str, table: pd.DataFrame) -> pd.DataFrame:
    """`steering_effects` as rows: job, metric, kind, scale, layer, value, low, high."""
    rows = []
    for effect, estimate in steering_effects(table).items():
        low, high = estimate.interval
        rows.append({"job": job, **effect._asdict(), "value": estimate.value, "low": low, "high": high})
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def steering_frame(jobs: Sequence[Record]) -> pd.DataFrame:
    """The rows of every finished job that has some.

    Raises:
        UserError: a file is damaged.
    """
    found = []
    for job in jobs:
        if job.state == "done" and (path := job.path / STEERING).is_file():
            with reading(path, "table of interventions"):
                found.append(effects_rows(job.name, pd.read_parquet(path)))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def steering_table(frame: pd.DataFrame) -> Table:
    """A row per job, scale and kind of flow."""
    rows = []
    for (job, scale, kind), part in _groups(frame.sort_values("scale", kind="stable"), "job", "scale", "kind"):
        places = {True: part["layer"] == part["layer"].min(), False: part["layer"].isna()}
        cells = [_number(part[(part["metric"] == metric) & places[first]]) for metric, first in COLUMNS.values()]
        rows.append([Cell(job), Cell(f"{scale:g}", scale), Cell(LOOKS[kind][0]), *cells])
    header = ["job", "scale", "features of", *COLUMNS]
    return Table(header, rows, ["scale", *COLUMNS], ["job", "scale", "features of"], NOTE)


def _number(rows: pd.DataFrame) -> Cell:
    if rows.empty or pd.isna(rows["value"].iloc[0]):
        return Cell(ABSENT)
    row = rows.iloc[0].to_dict()
    return Cell(format_row(row, "value", "low", "high"), float(row["value"]))


def steering_examples(jobs: Sequence[Record]) -> Table:
    """The texts of every finished job.

    Raises:
        UserError: a file is damaged.
    """
    rows: list[list[Cell]] = []
    header = ["job", "scale", "features", "KL", "text", "clean", "first layer", "all layers", "random flow, all layers"]
    for job in jobs:
        if job.state == "done" and (path := job.path / STEERING_EXAMPLES).is_file():
            with reading(path, "list of continuations"):
                for one in json.loads(path.read_text(encoding="utf-8")):
                    numbers = [Cell(f"{one['scale']:g}", one["scale"]), Cell(one["features"])]
                    numbers.append(Cell(format_value(one["kl"]), one["kl"]))
                    texts = [one["prompt"], *(one["continuations"][name] for name in header[5:])]
                    rows.append([Cell(job.name), *numbers, *(Cell(text, kind="context") for text in texts)])
    return Table(header, rows, ["scale", "KL"], ["job", "scale"], EXAMPLES_NOTE)


def steering_figure(frame: pd.DataFrame, directory: Path) -> list[Drawn]:
    """A figure per job, with its data."""
    drawn = []
    for number, ((job,), rows) in enumerate(_groups(frame, "job")):
        alone = frame["job"].nunique() == 1
        path = directory / ("steering.png" if alone else f"steering_{number}.png")
        plot_steering(rows, path, None if alone else job)
        write_csv(path.with_suffix(".csv"), rows)
        drawn.append(Drawn(path, "interventions along flows" + ("" if alone else f": {job}")))
    return drawn


def plot_steering(frame: pd.DataFrame, path: Path, title: str | None = None) -> Path:
    """KL divergence by the layer of the intervention, and at all layers, a panel per scale; flows and random flows.

    Args:
        frame: one job's rows of `steering_frame`.
    """
    kl = frame[frame["metric"] == "kl"]

    def draw(ax: Axes, scale: str) -> None:
        rows = kl[kl["scale"] == float(scale)]
        layers = sorted(set(rows["layer"].dropna().astype(int)))
        places = [*range(len(layers)), len(layers) + 0.5]
        for side, (kind, (name, color, marker)) in zip((-0.08, 0.08), LOOKS.items(), strict=True):
            own = rows[rows["kind"] == kind].sort_values("layer", na_position="last")
            value, low, high = (own[column].to_numpy(dtype=float) for column in ("value", "low", "high"))
            sides = np.clip(np.nan_to_num([value - low, high - value]), 0, None)
            at = np.asarray(places) + side
            ax.errorbar(at, value, yerr=sides, fmt=marker, color=color, label=name, capsize=2, linewidth=1)
            ax.plot(at[:-1], value[:-1], color=color, linewidth=0.8)
        ax.set_yscale("log", nonpositive="clip")
        ax.set_xticks(places, [*map(str, layers), "all"])
        ax.set_xlabel("layer of the intervention")
        ax.set_ylabel("KL [nats/token]")
        ax.set_title("removed" if float(scale) == 0 else f"scaled by {scale}")

    return plot_panels(path, [f"{scale:g}" for scale in sorted(set(kl["scale"]))], draw, title)
