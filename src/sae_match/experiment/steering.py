"""Interventions along a sample of flows: which flows, what equals them in activity, and continuations to read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm import tqdm

from sae_match.evaluation.functional.contexts import (
    CONTEXT_TOKENS,
    MAX_SEED,
    FunctionalTests,
    Steering,
    choose_contexts,
)
from sae_match.evaluation.functional.steering import (
    FlowFeatures,
    Steered,
    activity_in,
    chains,
    equally_active,
    steer,
)
from sae_match.experiment.contexts import only_features
from sae_match.experiment.evaluation import Evaluator
from sae_match.experiment.matching import MatchedPair
from sae_match.experiment.saes import JobSaes
from sae_match.language_model.interventions import Change, continue_greedily
from sae_match.metrics.description import MATCHED
from sae_match.pairs import Site
from sae_match.report.steering import FLOW, RANDOM
from sae_match.saes import SparseAutoencoder

logger = logging.getLogger(__name__)

EXAMPLES, CONTINUED, PROMPT_CHARACTERS = 3, 8, 300
"""Of each scale the flows with the largest effect of which continuations are kept, their tokens, and what is kept of
the text before them."""


class Sampled(NamedTuple):
    """A flow that is tested, its random one, their contexts, and the quartile of the first feature's firing rate."""

    flow: FlowFeatures
    random: FlowFeatures
    windows: npt.NDArray[np.int64]
    quartile: int


class Sample(NamedTuple):
    """Flows, and SAEs with their features alone, where each feature of a layer has the place that `place` names."""

    flows: list[Sampled]
    subject: Steered
    place: dict[int, dict[int, int]]

    def placed(self, flow: FlowFeatures) -> FlowFeatures:
        """A flow as those SAEs number features."""
        return [(layer, [self.place[layer][feature] for feature in features]) for layer, features in flow]


def steer_flows(
    evaluator: Evaluator, saes: JobSaes, neighbors: Sequence[MatchedPair], how: Steering, seed: int, progress: bool
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Every intervention along a sample of flows through the job's own matchings and along random flows.

    Args:
        neighbors: the matched pairs of the span, ascending.
        seed: of the sample and the random flows.

    Returns:
        Rows of steering.parquet, and the content of steering_examples.json; none where no flow can be tested.
    """
    sample = draw_flows(evaluator, saes, neighbors, how, seed)
    rows: list[dict[str, Any]] = []
    for flow, random, windows, quartile in tqdm(sample.flows, desc="steering along flows", disable=not progress):
        tokens: int | None = None
        for kind, steered in ((FLOW, flow), (RANDOM, random)):
            found = steer(sample.subject, sample.placed(steered), windows, how.scales, tokens)
            # As many of both: the features of a random flow fire apart from each other, and so from earlier on.
            tokens = int(found[0]["tokens"])
            about = {"flow": flow[0][1][0], "kind": kind, "quartile": quartile}
            rows += [about | row | {"features": _named(steered, row["layer"])} for row in found]
    if not rows:
        return pd.DataFrame(), []
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    return table, _examples(evaluator, sample, table, progress)


def draw_flows(
    evaluator: Evaluator, saes: JobSaes, neighbors: Sequence[MatchedPair], how: Steering, seed: int
) -> Sample:
    """Draw flows by their first features, and a random one for each; one SAE at a time is in memory as a whole."""
    inputs, streams, sinks = evaluator.inputs, evaluator.inputs.streams[0], evaluator.inputs.sink_positions
    layers = [neighbors[0].pair.layers[0], *(matched.pair.layers[1] for matched in neighbors)]
    first, seed = saes.load(Site(layers[0])), seed % MAX_SEED
    tests = FunctionalTests(features=how.flows, contexts=how.contexts, context_tokens=CONTEXT_TOKENS, seed=seed)
    contexts = choose_contexts(first, streams.layer(layers[0]), tests, inputs.batch_windows, sinks, least=how.contexts)
    partners = [matched.permutations[MATCHED].indices.numpy() for matched in neighbors]
    flows = {i: flow for i, flow in enumerate(chains(contexts.features.tolist(), layers, partners)) if len(flow) > 1}
    logger.info(
        "interventions along %d flows; %d more end at layer %d, %d of whose features fire nowhere",
        len(flows), len(contexts.features) - len(flows), layers[0], contexts.never_fires,
    )  # fmt: skip
    rngs, random = {i: contexts.rng(i) for i in flows}, {i: list[tuple[int, tuple[int, ...]]]() for i in flows}
    narrow: dict[int, SparseAutoencoder] = {}
    place: dict[int, dict[int, int]] = {}
    for layer in layers:
        sae, x = saes.load(Site(layer)), streams.layer(layer)
        wanted: set[int] = set()
        for i, flow in flows.items():
            if features := dict(flow).get(layer):
                read = x[torch.as_tensor(contexts.windows[i])][:, :CONTEXT_TOKENS]
                others = equally_active(features, activity_in(sae, read, sinks), rngs[i])
                random[i].append((layer, others))
                wanted |= {*features, *others}
        if wanted:
            narrow[layer] = only_features(sae, sorted(wanted))
            kept = range(sae.width) if narrow[layer] is sae else sorted(wanted)
            place[layer] = {feature: at for at, feature in enumerate(kept)}
    subject = Steered(inputs.models.of(0), narrow, streams.layer, inputs.windows.ids, CONTEXT_TOKENS, sinks)
    sampled = [Sampled(flow, random[i], contexts.windows[i], int(contexts.quartile[i])) for i, flow in flows.items()]
    return Sample(sampled, subject, place)


def _named(flow: FlowFeatures, layer: int | None) -> str:
    """The features that an intervention scales, such as `11/3 12/7`."""
    return " ".join(f"{at}/{feature}" for at, features in flow for feature in features if layer in (None, at))


def _examples(evaluator: Evaluator, sample: Sample, table: pd.DataFrame, progress: bool) -> list[dict[str, Any]]:
    """What the model goes on with where scaling a flow at all layers moves its prediction most."""
    whole = table[table["layer"].isna() & (table["kind"] == FLOW)]
    largest = whole.sort_values(["scale", "kl"], ascending=[True, False], kind="stable").groupby("scale").head(EXAMPLES)
    flows = {one.flow[0][1][0]: one for one in sample.flows}
    inputs, subject = evaluator.inputs, sample.subject
    model, text = inputs.models.of(0), inputs.decode
    found = []
    for row in tqdm(largest.to_dict("records"), desc="continuations", disable=not progress):
        scale = float(row["scale"])
        flow, random = (sample.placed(one) for one in flows[int(row["flow"])][:2])
        layers = [layer for layer, _ in flow]
        ids = inputs.windows.ids[row["window"], : row["position"] + 1]
        changes: Mapping[str, Mapping[int, Change]] = {
            "clean": {},
            "first layer": subject.changes(flow, scale, layers[:1]),
            "all layers": subject.changes(flow, scale, layers),
            "random flow, all layers": subject.changes(random, scale, layers),
        }
        found.append(
            {name: row[name] for name in ("flow", "scale", "features", "kl")}
            | {"prompt": text(ids.tolist())[-PROMPT_CHARACTERS:]}
            | {
                "continuations": {
                    name: text(continue_greedily(model, ids, CONTINUED, change)) for name, change in changes.items()
                }
            }
        )
    return found
