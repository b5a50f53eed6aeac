"""Matching every adjacent pair of the span, with its controls; each permutation is on disk as soon as it exists."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from sae_match.config.schema import Config
from sae_match.evaluation.pair import weight_rows
from sae_match.evaluation.rows import MetricRow
from sae_match.experiment.saes_in_span import SpanSaes
from sae_match.matching import Matching, Permutation, make_solver, match
from sae_match.matching.solution import Solver
from sae_match.metrics.weight_distance import weight_distances
from sae_match.record.job import JobRecord
from sae_match.saes import SparseAutoencoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairMatching:
    """One pair's matching with its controls.

    Attributes:
        layer, layer_to: layers t and t+1.
        permutations: `matched`, `vanilla` and `random`.
        rows: weight metrics of every variant and the solver's certificate.
        features: one row per matched feature with its distances.
        random_mse: decoder MSE of each pair of the random control, to draw beside the matched ones.
    """

    layer: int
    layer_to: int
    permutations: dict[str, Permutation]
    rows: list[MetricRow]
    features: pd.DataFrame
    random_mse: npt.NDArray[np.float32]


def match_span(cfg: Config, saes: SpanSaes, solver: Solver, record: JobRecord, progress: bool) -> list[PairMatching]:
    """Match all adjacent pairs, saving each permutation into the record when it is found."""
    pairs = tqdm(saes.pairs, desc="matching layer pairs", disable=not progress)
    return [match_pair(cfg, saes, solver, record, layer, layer_to) for layer, layer_to in pairs]


def match_pair(
    cfg: Config, saes: SpanSaes, solver: Solver, record: JobRecord, layer: int, layer_to: int
) -> PairMatching:
    """Match one pair and save its permutation. No SAE outlives this call except the two that `saes` holds."""
    a, b = saes.load(layer), saes.load(layer_to)
    matching = match_configured(cfg, a, b, solver)
    provenance = {**matching.permutation.provenance, "layer_a": layer, "layer_b": layer_to, "sae": cfg.sae.name}
    provenance["folding_scale"] = cfg.folding.scale.value
    matched = replace(matching.permutation, provenance=provenance)
    matched.save(record.permutation_path(layer, layer_to))
    permutations = with_controls(matched, seed=cfg.seed + layer)
    rows = weight_rows(a, b, permutations, layer, layer_to) + certificate_rows(matching, layer, layer_to)
    features = feature_table(a, b, matched, layer, layer_to)
    random_mse = weight_distances(a, b, permutations["random"]).W_dec.cpu().numpy()
    logger.info(
        "layers %d -> %d: objective %.6g, gap %.1e, %.2f s",
        layer, layer_to, matching.objective, matching.gap, matching.seconds,
    )  # fmt: skip
    return PairMatching(layer, layer_to, permutations, rows, features, random_mse)


def configured_solver(cfg: Config) -> Solver:
    """The solver that the configuration names."""
    return make_solver(cfg.solver.name, cfg.solver.memory_limit_gib)


def match_configured(cfg: Config, a: SparseAutoencoder, b: SparseAutoencoder, solver: Solver) -> Matching:
    """`match` with the configuration's metric, folding, bias and weights."""
    return match(
        a,
        b,
        metric=cfg.matching.metric,
        folding=cfg.folding.name,
        solver=solver,
        include_bias=cfg.matching.include_bias,
        weights=cfg.matching.weights,
    )


def with_controls(matched: Permutation, seed: int) -> dict[str, Permutation]:
    """The matching beside its two controls of the same shape."""
    n_a, n_b = matched.n_a, matched.n_b
    return {
        "matched": matched,
        "vanilla": Permutation.identity(n_a, n_b),
        "random": Permutation.random(n_a, n_b, seed=seed),
    }


def certificate_rows(matching: Matching, layer: int, layer_to: int) -> list[MetricRow]:
    """Objective, lower bound, gap and time of the solver."""
    values = {
        "objective": matching.objective,
        "lower_bound": matching.lower_bound,
        "gap": matching.gap,
        "solver_seconds": matching.seconds,
    }
    n = len(matching.permutation.matched)
    return [MetricRow(layer, layer_to, "matched", name, value, n) for name, value in values.items()]


def feature_table(
    a: SparseAutoencoder, b: SparseAutoencoder, matched: Permutation, layer: int, layer_to: int
) -> pd.DataFrame:
    """One row per matched feature: partner, mean squared differences in folded units, decoder cosine."""
    distances = weight_distances(a, b, matched)
    rows = matched.matched
    return pd.DataFrame(
        {
            "layer": layer,
            "layer_to": layer_to,
            "feature": rows.numpy(),
            "partner": matched.indices[rows].numpy(),
            "mse_W_enc": distances.W_enc.cpu().numpy(),
            "mse_b_enc": distances.b_enc.cpu().numpy(),
            "mse_W_dec": distances.W_dec.cpu().numpy(),
            "decoder_cosine": distances.decoder_cosine.cpu().numpy(),
        }
    )
