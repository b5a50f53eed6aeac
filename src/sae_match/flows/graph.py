"""The flow graph of a span of layers as tables: nodes, edges and events; on disk a folder of four files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sae_match.errors import DamagedFileError, UserError
from sae_match.files import atomic_path, reading, write_json
from sae_match.flows.events import EVENTS

NODES, EDGES, EVENT_TABLE, ABOUT = "nodes.parquet", "edges.parquet", "events.csv", "flow.json"
FILES = (NODES, EDGES, EVENT_TABLE, ABOUT)
NODE_TYPES = {"layer": "int32", "feature": "int32", "firing_rate": "float32", **dict.fromkeys(EVENTS, "bool")}
EDGE_TYPES = {
    "layer": "int32", "feature": "int32", "layer_to": "int32", "feature_to": "int32", "similarity": "float32",
    "best_child": "bool", "best_parent": "bool", "coactivation": "float32", "deactivation": "float32",
}  # fmt: skip
COUNTS = ("features", "features_to", "edges", *EVENTS)
NULLS = tuple(f"null_{name}" for name in ("rate", *EVENTS))
EVENT_COLUMNS = ("layer", "layer_to", "role", *COUNTS, "threshold", *NULLS)


@dataclass(frozen=True, eq=False)
class Flow:
    """Which features continue which, over a span of layers (`sae_match.flow`).

    Attributes:
        nodes: one row per feature that is compared: `layer`, `feature`; `firing_rate`, share of tokens (NaN = not
            measured); `persist`, `split` and `death` on the way to the next layer, `merge` and `birth` on the way from
            the one before (False where there is no such layer).
        edges: one row per parent (`layer`, `feature`) and child (`layer_to`, `feature_to`): `similarity`; `best_child`,
            the child is the parent's best, `best_parent`, the parent the child's; `coactivation`, share of the
            parent's tokens on which the child fires too; `deactivation`, share of the child's activation that is lost
            without the parent (NaN = not measured).
        events: one row per `role` (`adjacent`: two layers, `seeds`: two SAEs of one layer) and pair: how many
            `features` and `features_to` are compared, `edges`, features of each event, the `threshold`, and the same
            at that threshold where the second dictionary is turned by another random rotation: `null_rate`, share of
            the features of both sides that have an edge, and `null_persist` ... `null_death`.
        about: `similarity` (name, label, unit), `folding`, `alpha`, `seed`, `model`, `saes` (of each layer name,
            content_hash, width and neuronpedia, its name there or None), `versions`.
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame
    events: pd.DataFrame
    about: Mapping[str, Any]

    @property
    def layers(self) -> list[int]:
        """Layers of the nodes, ascending."""
        return sorted(self.nodes["layer"].unique().tolist())

    def __repr__(self) -> str:
        ends = f"layers {self.layers[0]}..{self.layers[-1]}" if len(self.nodes) else "no layers"
        return f"Flow({ends}, {len(self.nodes):,} features, {len(self.edges):,} edges)"

    def through(self, layer: int, feature: int) -> Flow:
        """The subgraph of a feature, all it comes from and all it leads to; events are those of the whole layers.

        Raises:
            UserError: no such node.
        """
        if not ((self.nodes["layer"] == layer) & (self.nodes["feature"] == feature)).any():
            raise UserError(f"feature {feature} of layer {layer} is no node of {self}: it never fires, or is not there")
        down, up = ("layer", "feature"), ("layer_to", "feature_to")
        parts: list[pd.DataFrame] = []
        for (at, own), (to, other), order in ((down, up, self.layers), (up, down, self.layers[::-1])):
            reached: dict[Any, set[int]] = {layer: {feature}}
            for here in order:
                found = self.edges[(self.edges[at] == here) & self.edges[own].isin(reached.get(here, ()))]
                for there, part in found.groupby(to):
                    reached.setdefault(there, set()).update(part[other])
                parts.append(found)
        edges = pd.concat(parts).sort_index()
        places = {(layer, feature)}.union(*(zip(edges[a], edges[f], strict=True) for a, f in (down, up)))
        nodes = self.nodes[[place in places for place in zip(self.nodes["layer"], self.nodes["feature"], strict=True)]]
        return Flow(nodes.reset_index(drop=True), edges.reset_index(drop=True), self.events, self.about)

    def save(self, folder: Path | str) -> None:
        """Write nodes.parquet, edges.parquet, events.csv and flow.json into a folder, each of them whole or not."""
        folder = Path(folder)
        for name, table in ((NODES, self.nodes), (EDGES, self.edges)):
            with atomic_path(folder / name) as temporary:
                table.to_parquet(temporary, index=False, compression="zstd")
        with atomic_path(folder / EVENT_TABLE) as temporary:
            self.events.to_csv(temporary, index=False, lineterminator="\n")
        write_json(folder / ABOUT, dict(self.about))

    @classmethod
    def load(cls, folder: Path | str) -> Flow:
        """Read what `save` wrote.

        Raises:
            UserError: a file is missing, too large, damaged or without a column.
        """
        folder = Path(folder)
        if (folder / "flow" / ABOUT).is_file():  # of a record
            folder = folder / "flow"
        for name in FILES:
            if not (folder / name).is_file():
                raise DamagedFileError(folder / name, f"is missing; a flow is a folder with {', '.join(FILES)}")
        with reading(folder / ABOUT, "description of a flow"):
            about = dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))
        tables = []
        for name, types in ((NODES, NODE_TYPES), (EDGES, EDGE_TYPES)):
            with reading(folder / name, f"table with {', '.join(types)}"):
                tables.append(pd.read_parquet(folder / name, columns=list(types)).astype(types))
        with reading(folder / EVENT_TABLE, "table of events"):
            events = pd.read_csv(folder / EVENT_TABLE)[list(EVENT_COLUMNS)]
        return cls(tables[0], tables[1], events, about)
