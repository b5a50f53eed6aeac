"""`evaluate_pair`: weights, co-activations and reconstructions of one layer pair as tidy rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int

from sae_match.arrays import Array, as_tensor, windows_of
from sae_match.errors import UserError
from sae_match.evaluation.activations import ActivationRequest, ActivationStatistics, compute_activations
from sae_match.evaluation.sanity import check_encoding
from sae_match.evaluation.splices import Splice, SplicePair, SpliceUnits, bind_all, parse_units
from sae_match.evaluation.standard_splices import STANDARD
from sae_match.matching import Permutation
from sae_match.metrics.bootstrap import Bootstrap
from sae_match.metrics.description import MATCHED
from sae_match.metrics.metric import MatchedWeights, Metric, MetricRow, metric_rows
from sae_match.metrics.registry import BUILT_IN
from sae_match.metrics.weight_distance import weight_distances, weight_distances_of
from sae_match.saes import SparseAutoencoder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PairEvaluation:
    """Metrics of a pair as rows, and the raw counts behind them."""

    rows: list[MetricRow]
    statistics: ActivationStatistics

    def to_frame(self) -> pd.DataFrame:
        """One row per variant and metric: value, its 95 % interval (`low`, `high`) and n, as in pairs.csv."""
        import pandas as pd

        return pd.DataFrame([row.as_dict() for row in self.rows])

    def __repr__(self) -> str:
        variants = dict.fromkeys(row.variant for row in self.rows)
        return f"PairEvaluation({len(self.rows)} numbers of {', '.join(variants)})"

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, float_format="{:.4g}".format, na_rep=""))


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """How a pair is measured.

    Attributes:
        units: units in which activations are carried along the permutation, `theta` or `raw`.
        splices: what stands in for x_b; `Quantiles(quantiles=[0.5])` adds those of Eq. 6.
        min_count: per-feature scores average over features that fire at least this often.
        batch_windows: windows computed at a time; changes memory use, not the result.
        sink_positions: positions at each window's start that are not counted (1 = position 0).
        bootstrap: resamples over documents; 1,000 drawn with seed 0 if None.
        metrics: what is measured, by name.
    """

    units: SpliceUnits | str = SpliceUnits.theta
    splices: Sequence[Splice] = STANDARD
    min_count: int = 10
    batch_windows: int = 8
    sink_positions: int = 1
    bootstrap: Bootstrap | None = None
    metrics: Mapping[str, Metric] = field(default_factory=lambda: BUILT_IN)


def evaluate_pair(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    permutations: Permutation | dict[str, Permutation],
    x_a: Float[Array, "windows tokens d_a"] | Float[Array, "tokens d_a"],
    x_b: Float[Array, "windows tokens d_b"] | Float[Array, "tokens d_b"],
    document: Int[Array, " windows"] | None = None,
    *,
    layers: tuple[int, int] = (0, 1),
    settings: PairSettings | None = None,
) -> PairEvaluation:
    """All metrics of one layer pair that need no language model, only its residual streams.

    A `UserWarning` says so where an SAE does not fit its residual stream, with the likely cause (`evaluation.sanity`).

    Args:
        a, b: SAEs of layers t and t+1.
        permutations: one matching A -> B, or several by variant (`matched`, `random`, ...).
        x_a, x_b: resid_post of both layers on the same tokens; sink positions are left out. Of tokens without windows,
            [tokens, d], all are counted.
        document: 0-based document of each window (or token), for the intervals. If None, each window is a document of
            its own; tokens without windows are one document together, and there are no intervals.
        layers: layer numbers, for the rows.
        settings: `PairSettings()` if None.

    Raises:
        UserError: shapes that do not fit together, numbers of documents below 0, unknown units, or a splice that
            cannot be made of this pair.
    """
    how = settings or PairSettings()
    named = {"matched": permutations} if isinstance(permutations, Permutation) else permutations
    if document is None:
        document = torch.arange(len(x_a)) if x_a.ndim != 2 else torch.zeros(len(x_a), dtype=torch.int64)
    number = as_tensor(document)
    if number.is_floating_point() or not len(number) or int(number.min()) < 0:
        raise UserError(f"document numbers the windows' documents, from 0: {number.dtype} {tuple(number.shape)}")
    if how.bootstrap is None:  # numbers that no window has are no documents
        number = torch.unique(number, return_inverse=True)[1]
    bootstrap = how.bootstrap or Bootstrap(int(number.max()) + 1)
    x_b, *_ = windows_of(x_b, how.sink_positions, how.batch_windows)
    x_a, sinks, batch = windows_of(x_a, how.sink_positions, how.batch_windows)
    pair = SplicePair(a, b, named, parse_units(how.units), layers=layers, batch_windows=batch, sink_positions=sinks)
    splices = bind_all(how.splices, pair)
    statistics = compute_activations(ActivationRequest(a, b, x_a, x_b, number, named, splices, batch, sinks))
    for sae, layer in ((a, layers[0]), (b, layers[1])):
        for told in check_encoding(sae, {layers[0]: x_a, layers[1]: x_b}.__getitem__, layer, layers, sinks):
            warnings.warn(told, UserWarning, stacklevel=2)
    rows = weight_rows(how.metrics, weight_distances_of(a, b, named), layers)
    rows += activation_rows(how.metrics, statistics, bootstrap, layers, how.min_count)
    return PairEvaluation(rows, statistics)


def weight_rows(
    metrics: Mapping[str, Metric],
    distances: Mapping[str, MatchedWeights],
    layers: tuple[int, int],
) -> list[MetricRow]:
    """Every metric of the weights that each variant matches; exact, so that nothing is resampled."""
    rows: list[MetricRow] = []
    bootstrap = Bootstrap(1, samples=1)
    for variant, found in distances.items():
        rows += metric_rows(metrics, found, bootstrap, layers, variant)
    return rows


def activation_rows(
    metrics: Mapping[str, Metric],
    statistics: ActivationStatistics,
    bootstrap: Bootstrap,
    layers: tuple[int, int],
    min_count: int,
) -> list[MetricRow]:
    """Every metric of the counts and sums of one pass: of co-activations by variant, of reconstructions by splice."""
    rows: list[MetricRow] = []
    for variant, together in statistics.together.items():
        counts = together.of_pair(statistics.a, statistics.b, min_count)
        rows += metric_rows(metrics, counts, bootstrap, layers, variant)
    for splice, reconstruction in statistics.reconstruction.items():
        rows += metric_rows(metrics, reconstruction.sums(), bootstrap, layers, splice)
    return rows


def feature_table(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    permutation: Permutation,
    statistics: ActivationStatistics | None = None,
    *,
    distances: MatchedWeights | None = None,
) -> pd.DataFrame:
    """One row per matched feature: its partner, and how alike the two are.

    Columns: `feature`, `partner`, mean squared differences in folded units (`mse_W_enc`, `mse_b_enc`, `mse_W_dec`),
    `decoder_cosine`, `theta_ratio` (theta of the partner over that of the feature); with `statistics` also on how many
    tokens either fires (`active`, `partner_active`) and both do (`together`), and `matching_score`, together / active
    (NaN where the feature never fires).

    Args:
        a, b: SAEs as loaded (unfolded).
        permutation: a matching A -> B.
        statistics: of `evaluate_pair` with this permutation, called `matched`.
        distances: of these SAEs and this permutation, where they are known.

    Raises:
        UserError: SAEs without thresholds or another scale to be folded by.
    """
    import pandas as pd

    rows = permutation.matched
    partners = permutation.indices[rows]
    found = weight_distances(a, b, permutation) if distances is None else distances
    columns = {
        "feature": rows.numpy(),
        "partner": partners.numpy(),
        **{f"mse_{group}": mse for group, mse in found.mse.items()},
        "decoder_cosine": found.decoder_cosine,
        "theta_ratio": (b.theta.cpu()[partners] / a.theta.cpu()[rows]).numpy(),
    }
    table = pd.DataFrame(columns)
    return table if statistics is None else add_activations(table, statistics)


def add_activations(table: pd.DataFrame, statistics: ActivationStatistics) -> pd.DataFrame:
    """A feature table with the columns that need `statistics`."""
    feature, partner = table["feature"].to_numpy(), table["partner"].to_numpy()
    together = statistics.together[MATCHED]
    return table.assign(
        active=statistics.a.active.sum(dim=0).cpu().numpy()[feature],
        partner_active=statistics.b.active.sum(dim=0).cpu().numpy()[partner],
        together=together.together.sum(dim=0).cpu().numpy()[feature],
        matching_score=together.per_feature(statistics.a)[feature],
    )
