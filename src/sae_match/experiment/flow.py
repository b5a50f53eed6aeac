"""The flow graph of a job's span: by its own similarity, on its text where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
from tqdm import tqdm

from sae_match.experiment.evaluation import Evaluator
from sae_match.experiment.saes import JobSaes
from sae_match.flows.events import EVENTS
from sae_match.flows.find import ADJACENT, flow
from sae_match.flows.graph import EDGE_TYPES, Flow
from sae_match.metrics.description import CEILING, MATCHED
from sae_match.metrics.metric import MetricRow
from sae_match.pairs import JobPairs, Site, span
from sae_match.record.provenance import versions
from sae_match.report.pages import NEURONPEDIA, neuronpedia_link
from sae_match.saes import SparseAutoencoder
from sae_match.study import Study

ROTATED = "rotated"
"""The variant of the null's counts."""
OF_CHILDREN = ("merge", "birth")
"""Events that are shares of the later layer's features; the others are of the earlier one's."""


def find_flow(
    study: Study, pairs: JobPairs, saes: JobSaes, evaluator: Evaluator | None, alpha: float, progress: bool
) -> Flow:
    """The flow graph of the span's layers, and what it was made from.

    Raises:
        UserError: from `flow`.
    """
    layers, seeds = span(study), {pair.a.layer: pair.b for pair in pairs.seeds}

    def second_seed(layer: int) -> SparseAutoencoder | None:
        return saes.load(seeds[layer]) if layer in seeds else None

    def loaded() -> Iterator[SparseAutoencoder]:
        for layer in tqdm(layers, desc="flow graph", disable=not progress):
            yield saes.load(Site(layer))

    inputs = None if evaluator is None else evaluator.inputs
    found = flow(
        loaded(), layers=layers, similarity=study.matching, alpha=alpha, folding=study.folding.name,
        second_seed=second_seed, streams=None if inputs is None else inputs.streams[0],
        fit=None if inputs is None or inputs.fit_streams is None else inputs.fit_streams[0],
        sink_positions=study.model.sink_positions,
        batch_windows=study.evaluation.batch_windows, seed=study.seed,
    )  # fmt: skip
    link = neuronpedia_link({"neuronpedia": study.sae.neuronpedia, "l0": getattr(study.sae, "l0", None)})
    named = [
        sae | {"name": study.sae.name, "neuronpedia": _source(link(sae["layer"], 0))} for sae in found.about["saes"]
    ]
    return replace(found, about={**found.about, "model": study.model.name, "saes": named, "versions": versions()})


def _source(address: str | None) -> str | None:
    """MODEL/SOURCE of a feature's address on Neuronpedia."""
    return None if address is None else address.removeprefix(f"{NEURONPEDIA}/").rpartition("/")[0]


def flow_rows(events: pd.DataFrame) -> list[MetricRow]:
    """Shares of the features of every event: between layers, of two seeds of a layer, and under the null."""
    rows: list[MetricRow] = []
    for event in events.to_dict("records"):
        layers = int(event["layer"]), int(event["layer_to"])
        adjacent = event["role"] == ADJACENT
        variants = {MATCHED: "", ROTATED: "null_"} if adjacent else {CEILING: ""}
        for variant, prefix in variants.items():
            for name in EVENTS:
                n = int(event["features_to" if name in OF_CHILDREN else "features"])
                rows.append(MetricRow(*layers, variant, f"flow/{name}", event[prefix + name] / n, n))
    return rows


def with_deactivation(found: Flow, effects: pd.DataFrame) -> Flow:
    """The flow with the causal weight of those edges whose parent was removed and whose child some matcher named.

    Args:
        effects: as in functional.parquet.
    """
    ends = ["layer", "feature", "layer_to", "feature_to"]
    tested = effects.rename(columns={"partner": "feature_to", "drop": "deactivation"})
    tested = tested[[*ends, "deactivation"]].drop_duplicates(ends)
    edges = found.edges.drop(columns="deactivation").merge(tested, on=ends, how="left")
    return replace(found, edges=edges[list(EDGE_TYPES)].astype(EDGE_TYPES))
