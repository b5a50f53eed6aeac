"""Controls beside `vanilla` and `random`: other ways to match each pair, evaluated like the matching itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from sae_match.config.controls import SOLVED, Control, chosen
from sae_match.config.schema import Config
from sae_match.config.solver_schema import SolverName
from sae_match.evaluation.linear_map import LINEAR_MAP, LinearMap, fit_linear_map
from sae_match.evaluation.pair import weight_rows
from sae_match.evaluation.rows import MetricRow
from sae_match.evaluation.splices import PairActivations, Splice
from sae_match.experiment.correlation_step import fit_streams, match_by_correlation
from sae_match.experiment.evaluation_step import Evaluator
from sae_match.experiment.matching_step import PairMatching, match_configured
from sae_match.experiment.saes_in_span import SpanSaes
from sae_match.matching import make_solver
from sae_match.matching.by_similarity import check_memory
from sae_match.matching.solution import Solver
from sae_match.metrics.weight_distance import weight_distances_of
from sae_match.store import Store

logger = logging.getLogger(__name__)

Aside = Mapping[int, Bool[Tensor, " F"]]


def control_solvers(cfg: Config, device: str = "cpu") -> dict[str, Solver]:
    """The baseline solvers among the controls, with the options of the job's own solver."""
    named = [control for control in chosen(cfg.evaluation.controls) if control in SOLVED]
    return {
        control.value: make_solver(replace(cfg.solver, name=SolverName(control.value)), device=device, seed=cfg.seed)
        for control in named
    }


def check_correlation(cfg: Config, width_a: int, width_b: int) -> None:
    """Refuse widths whose correlations do not fit into memory, if the job needs them.

    Raises:
        UserError: too little memory.
    """
    if Control.correlation in chosen(cfg.evaluation.controls):
        # The narrower side is in front when it comes to matching.
        check_memory(min(width_a, width_b), max(width_a, width_b), cfg.solver.memory_limit_gib)


def add_controls(
    store: Store,
    cfg: Config,
    saes: SpanSaes,
    matchings: Sequence[PairMatching],
    evaluator: Evaluator | None,
    aside: Aside,
    device: str,
    progress: bool,
) -> list[PairMatching]:
    """The pairs with the permutations of the further controls and their weight metrics.

    Args:
        evaluator: with text to fit on; None for weights_only.
        aside: features that every control leaves unmatched as well, by layer.
    """
    solvers = control_solvers(cfg, device)
    correlated = Control.correlation in chosen(cfg.evaluation.controls)
    if not solvers and not correlated:
        return list(matchings)
    found: list[PairMatching] = []
    for pair in tqdm(matchings, desc="matching controls", disable=not progress):
        a, b = saes.load(pair.layer), saes.load(pair.layer_to)
        excluded = aside.get(pair.layer), aside.get(pair.layer_to)
        more = {name: match_configured(store, cfg, a, b, s, *excluded).permutation for name, s in solvers.items()}
        rows: list[MetricRow] = []
        if correlated and evaluator is not None:
            matching = match_by_correlation(evaluator, (pair.layer, pair.layer_to), a, b, excluded)
            more[Control.correlation.value] = matching.permutation
            values = {"fit_correlation": matching.mean, "gap": matching.gap}
            n = len(matching.permutation.matched)
            rows = [MetricRow(pair.layer, pair.layer_to, "correlation", name, x, n) for name, x in values.items()]
        rows += weight_rows(weight_distances_of(a, b, more), pair.layer, pair.layer_to)
        logger.info("layers %d -> %d: controls %s", pair.layer, pair.layer_to, ", ".join(more))
        found.append(replace(pair, permutations=pair.permutations | more, rows=pair.rows + rows))
    return found


def say_ceilings(rows: Sequence[MetricRow]) -> None:
    """Log how far each pair is from what two seeds of one layer reach: the SAEs' own variance."""
    known = {(row.layer, row.layer_to, row.metric): row.value for row in rows if row.variant == "ceiling"}
    for row in rows:
        metric = row.metric.removesuffix("_to_ceiling")
        if metric != row.metric and metric in ("matching_score", "explained_variance") and row.estimate is not None:
            seeds = [
                f"{known[at, at, metric]:.3f} for two seeds of layer {at}"
                for at in (row.layer, row.layer_to)
                if (at, at, metric) in known
            ]
            logger.info(
                "layers %d -> %d: %s is %+.3f [%+.3f, %+.3f] from %s",
                row.layer, row.layer_to, metric, row.value, *row.estimate.interval, ", ".join(seeds),
            )  # fmt: skip


def linear_map(evaluator: Evaluator, pair: PairMatching) -> dict[str, Splice]:
    """The splice `linear_map` of a pair, fitted on the text that is not evaluated; none if the job asks for none.

    Fitted when it is first called, which it may never be: what it gives may be known. Not kept beyond the pair: for a
    whole span, the maps would outgrow the SAEs.
    """
    if Control.linear_map not in chosen(evaluator.cfg.evaluation.controls):
        return {}
    fitted = cache(lambda: _fitted(evaluator, pair))

    def mapped(activations: PairActivations) -> Tensor:
        return fitted()(activations)

    return {LINEAR_MAP: mapped}


def _fitted(evaluator: Evaluator, pair: PairMatching) -> LinearMap:
    streams = fit_streams(evaluator)
    fitted = fit_linear_map(
        streams.layer(pair.layer),
        streams.layer(pair.layer_to),
        evaluator.cfg.evaluation.batch_windows,
        evaluator.cfg.model.sink_positions,
        evaluator.saes.device,
    )
    if fitted.ridge > 0:
        logger.warning(
            "layers %d -> %d: the linear map is regularised (ridge %.2g): %d tokens do not determine it",
            pair.layer, pair.layer_to, fitted.ridge, fitted.tokens,
        )  # fmt: skip
    return fitted
