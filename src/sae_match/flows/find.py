"""`flow`: from the SAEs of a span of layers to its flow graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.activations import firing_counts
from sae_match.evaluation.nulls import exceeded_by, rotated
from sae_match.flows.events import EVENTS, Step, step
from sae_match.flows.graph import EDGE_TYPES, EVENT_COLUMNS, NODE_TYPES, Flow
from sae_match.flows.partners import BLOCK_ROWS, best_partners, measured_in
from sae_match.matching.feature_pair import FeaturePair, Streams
from sae_match.matching.similarity import Comparison
from sae_match.matching.weight_similarities import DecoderCosine
from sae_match.options import parse
from sae_match.saes import SparseAutoencoder
from sae_match.saes.folding import FoldingKind
from sae_match.saes.live import as_sae

logger = logging.getLogger(__name__)

ADJACENT, SEEDS = "adjacent", "seeds"


@dataclass(frozen=True)
class _Compared:
    """An SAE with its layer and, where text is read, the share of tokens on which each feature fires."""

    sae: SparseAutoencoder
    layer: int
    rate: Float[Tensor, " F"] | None

    @property
    def silent(self) -> Bool[Tensor, " F"] | None:
        return None if self.rate is None else self.rate == 0

    @property
    def features(self) -> Int[np.ndarray, " K"]:
        """Those that fire; all where that is not known."""
        silent = self.silent
        return np.arange(self.sae.width) if silent is None else (~silent).nonzero().flatten().numpy()


def flow(
    saes: Iterable[SparseAutoencoder | object],
    *,
    similarity: Comparison | None = None,
    alpha: float = 0.05,
    folding: FoldingKind | str = "theta",
    layers: Sequence[int] | None = None,
    second_seed: Callable[[int], SparseAutoencoder | None] = lambda layer: None,
    streams: Streams | None = None,
    fit: Streams | None = None,
    sink_positions: int = 1,
    batch_windows: int = 8,
    seed: int = 0,
    block_rows: int = BLOCK_ROWS,
) -> Flow:
    """Follow every feature from layer to layer: its children, its parents, and where it splits, merges, begins or ends.

    An edge joins a feature with its most similar one of the next layer, in either direction, where they are more
    similar than at most a share `alpha` of the features of both layers are with their best partners once the next
    layer's dictionary is turned by a random rotation (`evaluation.nulls`). At that threshold a second rotation gives
    the null's own counts. Two seeds of a layer give the counts that are the SAEs' noise.

    Memory: two SAEs (three where a layer has a second seed) and a rotated one, the rows that a similarity compares, and
    10 block_rows F_b bytes, whatever the number of layers. Measured of two SAEs of 16,384 features and d_model 384: a
    peak of 1.15 GiB, of which 0.5 before the call. Where streams are given, besides 3 bytes per edge and counted token
    of `batch_windows` windows.

    Args:
        saes: one per layer, ascending: a list, or a generator that loads them one at a time. Live objects of other
            libraries do as well (`load_sae`).
        similarity: by what features are compared; None = the cosine of their decoder rows.
        alpha: in (0, 1).
        folding: `theta` or `none`, for similarities that depend on it.
        layers: of the SAEs; None = 0, 1, 2, ...
        second_seed: a further SAE of a layer, or None: `{14: other}.get`.
        streams: residual streams of some text by layer: features that fire on none of its tokens are no nodes, nodes
            have firing rates, edges co-activation. None = all features are nodes.
        fit: those on which a similarity such as the correlation of activations is fitted; None = `streams`.
        sink_positions: positions at each window's start that are not counted.
        batch_windows: windows read at a time.
        seed: of the rotations.
        block_rows: features compared with a whole layer at a time.

    Raises:
        UserError: fewer than two SAEs, layers that are not ascending or not one per SAE, alpha out of range, a
            similarity that no rotation changes, SAEs that cannot be compared, or a layer of which no feature fires.
    """
    similarity = similarity or DecoderCosine()
    finder = _Finder(
        similarity, alpha, parse(FoldingKind, folding, "folding"), streams, fit or streams, sink_positions,
        batch_windows, seed, block_rows,
    )  # fmt: skip
    named = None if layers is None else list(layers)
    if named is not None and named != sorted(set(named)):
        raise UserError(f"layers={named}: ascending, each layer once")
    previous: _Compared | None = None
    count = 0
    for count, given in enumerate(saes, start=1):
        if named is not None and count > len(named):
            break
        current = finder.compared(as_sae(given), count - 1 if named is None else named[count - 1])
        finder.add_layer(current)
        if previous is not None:
            finder.add_pair(previous, current, ADJACENT)
        if (other := second_seed(current.layer)) is not None:
            finder.add_pair(current, finder.compared(other, current.layer), SEEDS)
        previous = current
    if named is not None and count != len(named):
        raise UserError(f"layers={named}: name one layer for each SAE")
    if count < 2:
        raise UserError("a flow needs the SAEs of at least two layers")
    return finder.found()


class _Finder:
    """Nodes, edges and events as they are found, pair by pair."""

    def __init__(
        self, similarity: Comparison, alpha: float, folding: FoldingKind, streams: Streams | None,
        fit: Streams | None, sink_positions: int, batch_windows: int, seed: int, block_rows: int,
    ) -> None:  # fmt: skip
        if not 0 < alpha < 1:
            raise UserError(f"alpha={alpha}: a share in (0, 1)")
        if similarity.by_layer:
            raise UserError(f"{similarity.name} reads no parameter, so that no rotation gives it a null")
        if similarity.fitted and fit is None:
            raise UserError(f"{similarity.name} is fitted on text: pass streams (or fit)")
        self.similarity, self.alpha, self.folding, self.streams, self.fit = similarity, alpha, folding, streams, fit
        self.sink_positions, self.batch_windows, self.seed, self.block_rows = (
            sink_positions, batch_windows, seed, block_rows,
        )  # fmt: skip
        self.nodes: dict[int, pd.DataFrame] = {}
        self.edges: list[pd.DataFrame] = []
        self.events: list[dict[str, object]] = []
        self.saes: list[dict[str, object]] = []

    def compared(self, sae: SparseAutoencoder, layer: int) -> _Compared:
        if self.streams is None:
            return _Compared(sae, layer, None)
        x = self.streams.layer(layer)
        counts = firing_counts(sae, x, self.batch_windows, self.sink_positions)
        return _Compared(sae, layer, counts / (x.shape[0] * (x.shape[1] - self.sink_positions)))

    def add_layer(self, new: _Compared) -> None:
        features = new.features
        rates = np.full(len(features), np.nan) if new.rate is None else new.rate.numpy()[features]
        table = pd.DataFrame({"layer": new.layer, "feature": features, "firing_rate": rates})
        self.nodes[new.layer] = table.assign(**dict.fromkeys(EVENTS, False)).astype(NODE_TYPES)
        sae = new.sae
        self.saes.append({"layer": new.layer, "name": sae.source, "content_hash": sae.content_hash,
                          "width": sae.width, "neuronpedia": None})  # fmt: skip

    def add_pair(self, a: _Compared, b: _Compared, role: str) -> None:
        pair = FeaturePair(
            a.sae, b.sae, self.folding, (a.silent, b.silent), seed=self.seed, layers=(a.layer, b.layer), fit=self.fit,
            batch_windows=self.batch_windows, sink_positions=self.sink_positions,
        )  # fmt: skip
        nulls = [
            best_partners(self.similarity, replace(pair, b=rotated(b.sae, seed)), self.block_rows)
            for seed in (self.seed, self.seed + 1)
        ]
        threshold = exceeded_by(nulls[0].similarity, self.alpha)
        own = step(best_partners(self.similarity, pair, self.block_rows), threshold)
        null = step(nulls[1], threshold)
        counts = {"features": own.features, "features_to": own.features_to, "edges": len(own.edges), **own.counts}
        of_null = {"null_rate": null.reached, **{f"null_{name}": count for name, count in null.counts.items()}}
        places = {"layer": a.layer, "layer_to": b.layer}
        self.events.append({**places, "role": role, **counts, "threshold": threshold, **of_null})
        logger.info(
            "layers %d -> %d (%s): of %d features %d persist, %d split, %d end; %d begin", a.layer, b.layer, role,
            own.features, len(own.happened["persist"]), len(own.happened["split"]), len(own.happened["death"]),
            len(own.happened["birth"]),
        )  # fmt: skip
        if role == ADJACENT:
            self._keep(a, b, own)

    def _keep(self, a: _Compared, b: _Compared, found: Step) -> None:
        for name, features in found.happened.items():
            nodes = self.nodes[b.layer if name in ("merge", "birth") else a.layer]
            nodes.loc[nodes["feature"].isin(features), name] = True
        table = found.edges.assign(layer=a.layer, layer_to=b.layer, coactivation=np.nan, deactivation=np.nan)
        if self.streams is not None and len(table):
            table["coactivation"] = self._coactivation(a, b, table)
        self.edges.append(table[list(EDGE_TYPES)].astype(EDGE_TYPES))

    @torch.no_grad()
    def _coactivation(self, a: _Compared, b: _Compared, edges: pd.DataFrame) -> Float[np.ndarray, " E"]:
        """Share of the tokens on which each edge's parent fires on which its child fires too."""
        assert self.streams is not None
        parents, children = (torch.tensor(edges[name].to_numpy()) for name in ("feature", "feature_to"))
        together, alone = (torch.zeros(n, dtype=torch.int64) for n in (len(edges), a.sae.width))
        x_a, x_b = (self.streams.layer(one.layer)[:, self.sink_positions :] for one in (a, b))
        for parts in zip(x_a.split(self.batch_windows), x_b.split(self.batch_windows), strict=True):
            f_a, f_b = (
                (one.sae.encode(x.to(one.sae.device)) > 0).flatten(0, 1) for one, x in zip((a, b), parts, strict=True)
            )
            alone += f_a.sum(dim=0).cpu()
            together += (f_a[:, parents] & f_b[:, children]).sum(dim=0).cpu()
        return (together / alone[parents]).numpy()

    def found(self) -> Flow:
        from sae_match import __version__

        about: dict[str, Any] = {
            "similarity": measured_in(self.similarity), "folding": self.folding.value, "alpha": self.alpha,
            "seed": self.seed, "model": None, "saes": self.saes, "versions": {"sae_match": __version__},
        }  # fmt: skip
        return Flow(
            pd.concat(self.nodes.values(), ignore_index=True),
            pd.concat(self.edges, ignore_index=True),
            pd.DataFrame(self.events, columns=list(EVENT_COLUMNS)),
            about,
        )
