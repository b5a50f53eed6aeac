"""The full evaluation of a pair on text: co-activations, reconstructions and token losses, as rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Bool
from torch import Tensor

from sae_match.evaluation.activations import ActivationRequest, ActivationStatistics, never_active
from sae_match.evaluation.pair import activation_rows
from sae_match.evaluation.splices import BoundSplice, Splice, SplicePair, SpliceUnits, bind_all
from sae_match.evaluation.standard_splices import EncodeDecodePrevious, EncodePermuteDecode, LayerDrop
from sae_match.experiment.inputs import Inputs, log_text
from sae_match.experiment.matching import MatchedPair
from sae_match.experiment.passes import activations, per_feature
from sae_match.metrics.bootstrap import MIN_DOCUMENTS, Bootstrap, DocumentSums
from sae_match.metrics.description import CEILING, TO_CEILING
from sae_match.metrics.metric import LayerActivity, LossMetric, Metric, MetricRow, metric_rows
from sae_match.pairs import JobPairs, Role, Site
from sae_match.record.documents import SumsKey
from sae_match.saes import SparseAutoencoder
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import TokenWindows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluator:
    """Everything that the evaluation of a pair shares with the other pairs.

    Attributes:
        metrics: what is measured, by name.
        splices: those of the job's own pairs.
        units: units in which activations travel along a permutation, `theta` or `raw`.
        splice_rows: marks the windows on which token losses are computed.
        splice_windows: those windows.
        bootstrap, splice_bootstrap: resamples of the documents of all windows, and of those.
    """

    store: Store
    inputs: Inputs
    metrics: Mapping[str, Metric]
    splices: tuple[Splice, ...]
    units: SpliceUnits
    splice_rows: Bool[Tensor, " windows"]
    splice_windows: TokenWindows
    bootstrap: Bootstrap
    splice_bootstrap: Bootstrap
    min_count: int

    def notes(self) -> list[str]:
        """What a reader of the record must know of the text."""
        counts = {"metrics": self.inputs.text.counted.n_documents}
        if self.inputs.text.rows is None:
            counts["delta losses"] = self.splice_windows.n_documents
        return self.inputs.notes() + [
            f"{what} have no intervals: {count} documents, and intervals over documents need at least {MIN_DOCUMENTS}"
            for what, count in counts.items()
            if count < MIN_DOCUMENTS
        ]

    def splice_pair(self, matched: MatchedPair, a: SparseAutoencoder, b: SparseAutoencoder) -> SplicePair:
        """What the splices of a pair are made from."""
        inputs, (fit, fit_b) = self.inputs, self.inputs.fit(matched.pair)
        return SplicePair(
            a, b, matched.permutations, self.units, layers=matched.pair.blocks, fit=fit, fit_b=fit_b,
            batch_windows=inputs.batch_windows, sink_positions=inputs.sink_positions,
        )  # fmt: skip

    def bind(self, role: Role, pair: SplicePair) -> dict[str, BoundSplice]:
        """The splices of a pair, by the variant of their rows.

        Of the job's own pairs all. Of others Eq. 5 along every permutation, called like the permutation, and of layers
        further apart what the distance itself costs.
        """
        if role.own:
            return bind_all(self.splices, pair)
        found = EncodePermuteDecode().by_variant(pair)
        return found if role is Role.seeds else found | bind_all((EncodeDecodePrevious(), LayerDrop()), pair)

    def evaluate(
        self, matched: MatchedPair, a: SparseAutoencoder, b: SparseAutoencoder
    ) -> tuple[list[MetricRow], ActivationStatistics]:
        """One pass over the text of a pair, made once and then known, and every metric that follows from it."""
        pair, inputs = self.splice_pair(matched, a, b), self.inputs
        x_a, x_b = (inputs.residual(site) for site in (matched.pair.a, matched.pair.b))
        request = ActivationRequest(
            a, b, x_a, x_b, inputs.windows.document, pair.permutations, self.bind(matched.pair.role, pair),
            inputs.batch_windows, inputs.sink_positions,
        )  # fmt: skip
        found = activations(self.store, request, inputs.reads(matched.pair))
        return activation_rows(self.metrics, found, self.bootstrap, matched.pair.layers, self.min_count), found

    def layer_rows(self, site: Site, sae: SparseAutoencoder, active: Tensor, tokens: Tensor) -> list[MetricRow]:
        """Every metric of one dictionary and its residual stream.

        Args:
            active: [documents, F] tokens on which each feature fires.
            tokens: [documents] counted tokens.
        """
        norms = self.inputs.residual(site)[:, self.inputs.sink_positions :].norm(dim=-1)
        unfolded = sae.scale is not None and bool((sae.scale == 1).all())
        activity = LayerActivity(
            active=active.cpu().numpy(),
            tokens=tokens.cpu().numpy(),
            theta=None if unfolded else sae.theta.cpu().numpy(),
            decoder_norm=(sae.theta * sae.W_dec.norm(dim=1)).cpu().numpy(),
            residual_norm=norms.cpu().numpy(),
        )
        rows = metric_rows(self.metrics, activity, self.bootstrap, (site.layer, site.layer))
        return [replace(row, variant=row.variant + site.suffix) for row in rows]

    def dead(self, site: Site, sae: SparseAutoencoder) -> Bool[Tensor, " F"]:
        """Which features of a dictionary fire on no counted token of the evaluation text."""
        inputs, how = self.inputs, (self.inputs.batch_windows, self.inputs.sink_positions)
        facts = {"what": "dead", "streams": inputs.stream(site).key, "layer": site.at, "sinks": inputs.sink_positions}
        return per_feature(self.store, sae, facts, lambda: never_active(sae, inputs.residual(site), *how))

    def splice_residual(self, site: Site) -> Tensor:
        """resid_post that a dictionary reads on the splice windows; the memory-mapped whole where those are all."""
        residual = self.inputs.residual(site)
        return residual if bool(self.splice_rows.all()) else residual[self.splice_rows]


def make_evaluator(
    store: Store, study: Study, pairs: JobPairs, inputs: Inputs, metrics: Mapping[str, Metric]
) -> Evaluator:
    """The evaluation that a study asks for."""
    evaluation, windows = study.evaluation, inputs.windows
    rows = windows.leading(evaluation.splice_documents, evaluation.splice_windows_per_document)
    spliced = windows.subset(rows)
    log_text(inputs.text, spliced)
    samples, seed = evaluation.bootstrap_samples, study.seed
    return Evaluator(
        store=store,
        inputs=inputs,
        metrics=metrics,
        splices=study.pairs.splices(study),
        units=evaluation.units(study.folding.name),
        splice_rows=rows,
        splice_windows=spliced,
        bootstrap=Bootstrap(windows.n_documents, samples, seed),
        splice_bootstrap=Bootstrap(spliced.n_documents, samples, seed),
        min_count=evaluation.min_count,
    )


def excluded_rows(excluded: Mapping[Site, Bool[Tensor, " F"]]) -> list[MetricRow]:
    """How many features of each dictionary are left unmatched because they are dead."""
    for site, mask in excluded.items():
        logger.info("layer %d: %d of %d features are dead and excluded", site.layer, int(mask.sum()), len(mask))
    return [
        MetricRow(site.layer, site.layer, f"sae{site.suffix}", "features_aside", float(mask.sum()), len(mask))
        for site, mask in excluded.items()
    ]


def document_sums(evaluator: Evaluator, rows: Iterable[MetricRow]) -> dict[SumsKey, DocumentSums]:
    """The sums per document that the rows' estimates carry, each with the content key of its windows."""
    kept: dict[SumsKey, DocumentSums] = {}
    for row in rows:
        metric = evaluator.metrics.get(row.metric)
        if metric is None or metric.about.statistic is None or metric.about.sums_of is not None:
            continue
        if row.estimate is not None and row.estimate.sums is not None:
            windows = evaluator.splice_windows if isinstance(metric, LossMetric) else evaluator.inputs.windows
            kept[SumsKey(row.layer, row.layer_to, row.variant, row.metric, windows.key)] = row.estimate.sums
    return kept


def log_ceiling_gaps(rows: Sequence[MetricRow], metrics: Mapping[str, Metric]) -> None:
    """Log how far each pair is from what two seeds of one layer reach: the SAEs' own variance."""
    shown = {name for name, metric in metrics.items() if metric.about.headline}
    known = {(row.layer, row.metric): row.value for row in rows if row.variant == CEILING}
    for row in rows:
        metric = row.metric.removesuffix(TO_CEILING)
        if metric == row.metric or metric not in shown or row.estimate is None:
            continue
        seeds = [
            f"{known[at, metric]:.3f} for two seeds of layer {at}"
            for at in (row.layer, row.layer_to)
            if (at, metric) in known
        ]
        low, high = row.estimate.interval
        logger.info(
            "layers %d -> %d: %s is %+.3f%s from %s", row.layer, row.layer_to, metric, row.value,
            "" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]", ", ".join(seeds),
        )  # fmt: skip
