"""The steps of a job, in their order. Each hands its rows to the results, which are on disk after every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from sae_match.evaluation.children import ALPHA, find_children
from sae_match.evaluation.differences import ceiling_gap_rows, difference_rows
from sae_match.evaluation.pair import add_activations
from sae_match.evaluation.sanity import check_activity, check_encoding
from sae_match.experiment.contexts import text_contexts, with_contexts
from sae_match.experiment.evaluation import (
    Evaluator,
    document_sums,
    excluded_rows,
    log_ceiling_gaps,
    make_evaluator,
)
from sae_match.experiment.flow import find_flow, flow_rows, with_deactivation
from sae_match.experiment.headline import composition_headline, headline
from sae_match.experiment.inputs import prepare
from sae_match.experiment.judging import by_contexts, by_explanations, judge_pairs
from sae_match.experiment.losses import loss_rows
from sae_match.experiment.matching import MatchedPair, PairMatcher, match_distant, match_neighbors, match_seeds
from sae_match.experiment.matching_cache import cached_matching
from sae_match.experiment.outputs import looks, matcher_labels
from sae_match.experiment.paths import path_table, top_tokens_table
from sae_match.experiment.saes import JobSaes, check_saes, folding_scale
from sae_match.experiment.stability import compare_seeds
from sae_match.matching.similarity import DeadFeatures
from sae_match.metrics.description import MATCHED
from sae_match.metrics.metric import Metric, MetricRow
from sae_match.metrics.registry import described
from sae_match.pairs import JobPairs, Pair, Site, span
from sae_match.plan import Plan
from sae_match.plan.checks import check_model_facts
from sae_match.record.contents import FEATURES, FUNCTIONAL, PATHS, STABILITY, TOP_TOKENS
from sae_match.record.contexts import CONTEXTS, write_contexts
from sae_match.record.job import JobRecord
from sae_match.record.labels import Labels
from sae_match.record.results import Results
from sae_match.report.examples import choose_examples
from sae_match.report.steering import RATIOS, steering_effects
from sae_match.saes import SparseAutoencoder
from sae_match.store import Store
from sae_match.study import Study
from sae_match.terminal import wants_bars


@dataclass(frozen=True)
class Steps:
    """What the steps of one job share.

    Attributes:
        widths: number of features of the job's own dictionaries.
        evaluator: None for weights_only.
        metrics: what is measured, by name.
        progress: whether progress bars are shown.
    """

    study: Study
    pairs: JobPairs
    store: Store
    saes: JobSaes
    widths: Mapping[Site, int]
    matcher: PairMatcher
    evaluator: Evaluator | None
    metrics: Mapping[str, Metric]
    results: Results
    progress: bool

    def run(self) -> Results:
        """All steps."""
        self.results.warn(list(self.study.pairs.notes(self.study)))
        self.results.warn([] if self.evaluator is None else self.evaluator.notes())
        if self.study.evaluation.stability_seeds is not None:
            self.compare_seeds()
        neighbors = self.match_neighbors()
        seeds = self.evaluate(self.evaluator, neighbors) if self.evaluator is not None else []
        distant = self.match_distant(neighbors)
        self.test_partners([*neighbors, *distant, *seeds])
        self.find_flow()
        self.steer(neighbors)
        self.judge([*neighbors, *distant])
        self.follow_features()
        self.write_examples()
        labels = self.results.labels
        self.results.finish(headline(self.results.near_rows, labels) | composition_headline(self.results.rows, labels))
        return self.results

    def compare_seeds(self) -> None:
        """Compare the seeds of every layer that has several."""
        tables: list[pd.DataFrame] = []
        for layer in tqdm(span(self.study), desc="comparing seeds", disable=not self.progress):
            if (compared := compare_seeds(self.study, self.store, self.saes, layer)) is not None:
                self.results.add(compared.rows)
                self.results.warn(compared.warnings)
                tables.append(compared.features)
        self.results.record.write_table(STABILITY, pd.concat(tables, ignore_index=True))

    def match_neighbors(self) -> list[MatchedPair]:
        """Match the job's own pairs with their controls; each permutation is on disk as soon as it is found."""
        evaluator, found = self.evaluator, list[MatchedPair]()
        if evaluator is not None and self.study.matching.dead_features is DeadFeatures.exclude:
            bar = tqdm(self.widths, desc="finding dead features", disable=not self.progress)
            rows = excluded_rows({site: evaluator.dead(site, self.saes.load(site)) for site in bar})
        else:
            rows = []
        for pair in tqdm(self.pairs.own, desc="matching layer pairs", disable=not self.progress):
            found.append(self._match_neighbors(pair))
        self.results.add(rows)
        if found:
            self.results.random_mse = np.concatenate([matched.random_mse for matched in found])
        else:  # a single layer: a record has this table all the same
            self.results.record.write_table(FEATURES, self.results.features)
        return found

    def evaluate(self, evaluator: Evaluator, neighbors: list[MatchedPair]) -> list[MatchedPair]:
        """Everything that is measured on text of neighbors, of their layers, and of two seeds of a layer.

        Returns:
            The matchings of two seeds.
        """
        seeds: list[MatchedPair] = []
        for matched in tqdm(neighbors, desc="activations of layer pairs", disable=not self.progress):
            seeds += self._evaluate_neighbors(evaluator, matched)
        if evaluator.inputs.text.rows is None:
            self.results.add(loss_rows(evaluator, self.saes, neighbors, self.progress))
        rows = self.results.rows
        self.results.add(difference_rows(rows, self.metrics) + ceiling_gap_rows(rows, self.metrics))
        log_ceiling_gaps(self.results.rows, self.metrics)
        self.results.record.write_documents(document_sums(evaluator, self.results.rows))
        self.results.rows[:] = [row.without_sums() for row in self.results.rows]
        return seeds

    def match_distant(self, neighbors: list[MatchedPair]) -> list[MatchedPair]:
        """Match layers further apart exactly, and compare with the composed permutations of the neighbors."""
        found: list[MatchedPair] = []
        for pair in tqdm(self.pairs.distant, desc="composing over distance", disable=not self.progress):
            matched = self._match_distant(pair, neighbors)
            found.append(matched)
        return found

    def test_partners(self, pairs: list[MatchedPair]) -> None:
        """What the partners of every pair and matcher do in the model; on disk after every pair."""
        how = self.study.evaluation.functional
        if how is None or self.evaluator is None:
            return
        from sae_match.experiment.functional import FunctionalTester  # few jobs need it

        dtype = self.study.model.dtype
        if dtype != "float32" and {"substitution", "fingerprint"} & set(how.tests):
            self.results.warn(
                [
                    f"the model computes in {dtype}, whose rounding in later blocks outweighs what weak features do to "
                    "the predictions: substitution and fingerprint are too low for them; set model.dtype=float32"
                ]
            )
        tester = FunctionalTester(self.evaluator, how, self.progress)
        for matched in [matched for matched in pairs if matched.pair.role.value in how.pairs]:
            rows, effects = tester.test(matched, *self.saes.pair(matched.pair))
            differences = difference_rows(rows, self.metrics)
            self.results.add([row.without_sums() for row in rows + differences])
            if len(effects):
                self.results.add_effects(effects, matcher_labels(self.study))

    def find_flow(self) -> None:
        """Write the flow graph, its edges with the causal weights that the functional tests have measured, and the text
        on which its features fire."""
        alpha, record = self.study.evaluation.flow_alpha, self.results.record
        if alpha is None:
            return
        found = find_flow(self.study, self.pairs, self.saes, self.evaluator, alpha, self.progress)
        if (record.directory / FUNCTIONAL).is_file():
            effects = pd.read_parquet(record.directory / FUNCTIONAL)
            found = with_deactivation(found, effects) if "drop" in effects else found
        found.save(record.flow)
        if self.evaluator is not None:
            contexts = text_contexts(self.evaluator, self.saes, span(self.study), self.progress)
            write_contexts(record.flow / CONTEXTS, contexts)
        self.results.add(flow_rows(found.events))

    def steer(self, neighbors: list[MatchedPair]) -> None:
        """What it does to scale a feature at one layer, at all layers of its flow, and random ones."""
        how = self.study.evaluation.steering
        if how is None or self.evaluator is None:
            return
        from sae_match.experiment.steering import steer_flows  # few jobs need it

        seed, samples = self.study.seed, self.study.evaluation.bootstrap_samples
        effects, examples = steer_flows(self.evaluator, self.saes, neighbors, how, seed, self.progress)
        if effects.empty:
            self.results.warn([f"no feature of layer {span(self.study)[0]} begins a flow and fires in enough contexts"])
            return
        self.results.record.write_steering(effects, examples)
        n, rows = effects["flow"].nunique(), list[MetricRow]()
        for (metric, kind, scale, layer), estimate in steering_effects(effects, samples, seed).items():
            name = f"steering/{metric}" if layer is not None or metric in RATIOS else f"steering/{metric}_all"
            at = span(self.study)[0] if layer is None else layer
            rows.append(MetricRow(at, at, f"{kind}_x{scale:g}", name, estimate.value, n, estimate))
        self.results.add(rows)

    def judge(self, pairs: list[MatchedPair]) -> None:
        """Judge a sample of matched features; judgements.jsonl grows with every layer pair and variant."""
        judging = self.study.judging
        if not judging.enabled:
            return
        if judging.neuronpedia is not None or self.evaluator is None:
            describe = by_explanations(judging, judging.neuronpedia or "", self.widths)
        else:
            describe = by_contexts(judging, self.evaluator, self.saes)
        rows: list[MetricRow] = []
        samples, seed = self.study.evaluation.bootstrap_samples, self.study.seed
        for found, lines in judge_pairs(self.store, judging, describe, pairs, samples, seed, self.progress):
            rows += found
            self.results.record.add_judgements(lines)
        self.results.add(rows)

    def follow_features(self) -> None:
        """Write the paths of the first layer's features, and the tokens on which features fire."""
        if self.study.composition.paths:
            layers, record = span(self.study), self.results.record
            record.write_table(PATHS, path_table(self.results.features, layers, self.widths[Site(layers[0])]))
            if self.evaluator is not None:
                record.write_table(TOP_TOKENS, top_tokens_table(self.evaluator, self.saes, layers, self.progress))

    def write_examples(self) -> None:
        """Write pairs to look at, with the contexts on which their features fire most."""
        examples = choose_examples(self.results.features, self.study.evaluation.min_count)
        if self.evaluator is not None:
            examples = with_contexts(self.evaluator, self.saes, self.pairs.own, examples, self.progress)
        if len(examples):
            self.results.record.write_examples(examples)

    # Two SAEs are in memory at a time, three while two seeds are compared: of what follows only rows and permutations
    # outlive a call.

    def _match_neighbors(self, pair: Pair) -> MatchedPair:
        a, b = self.saes.pair(pair)
        if self.evaluator is not None:  # before the matching, which may take hours
            inputs = self.evaluator.inputs
            for site, sae in self._new_in(pair, a, b):
                layers = [other.at for other in self.widths if other.source == site.source]
                where = f"{self.study.pairs.name}, " if site.suffix else ""
                warnings = check_encoding(sae, inputs.stream(site).layer, site.at, layers, inputs.sink_positions)
                self.results.warn([where + told for told in warnings])
        matched = match_neighbors(self.matcher, pair, a, b, self.study.evaluation.matchers, self.metrics)
        if self.study.pairs.one_to_few:
            matched = self._with_children(matched, a, b)
        self.results.add(matched.rows, pair.layers, matched.features)
        self.results.warn(matched.warnings)
        return matched

    def _with_children(self, matched: MatchedPair, a: SparseAutoencoder, b: SparseAutoencoder) -> MatchedPair:
        """A matched pair with what is known of each feature's children, which are on disk."""
        match, alpha = partial(cached_matching, self.store), self.study.evaluation.null_alpha or ALPHA
        found = find_children(*self.matcher.features(matched.pair, a, b).weights, alpha, self.study.seed, match)
        layers, n = matched.pair.layers, found.width
        self.results.add_children(layers, found.to_frame())
        rows = [MetricRow(*layers, MATCHED, name, value, n) for name, value in found.numbers().items()]
        counts = found.counts.numpy()[matched.features["feature"].to_numpy()]
        return replace(matched, rows=matched.rows + rows, features=matched.features.assign(children=counts))

    def _new_in(self, pair: Pair, a: SparseAutoencoder, b: SparseAutoencoder) -> list[tuple[Site, SparseAutoencoder]]:
        """The sides of a pair that come up in it: A, and B where it is no A and was no B."""
        own = self.pairs.own
        elsewhere = {other.a for other in own} | {other.b for other in own[: own.index(pair)]}
        return [(pair.a, a), *([] if pair.b in elsewhere else [(pair.b, b)])]

    def _evaluate_neighbors(self, evaluator: Evaluator, matched: MatchedPair) -> list[MatchedPair]:
        a, b = self.saes.pair(matched.pair)
        seeds: list[MatchedPair] = []
        rows, counts = evaluator.evaluate(matched, a, b)
        self.results.add(rows, matched.pair.layers, add_activations(matched.features, counts))
        for (site, sae), active in zip(self._new_in(matched.pair, a, b), (counts.a, counts.b), strict=False):
            self.results.add(evaluator.layer_rows(site, sae, active.active, active.tokens))
            self.results.warn(check_activity(site.layer, active.active, active.tokens))
            for pair in self.pairs.seeds:
                if pair.a == site:
                    seeds.append(self._match_seeds(evaluator, pair))
        return seeds

    def _match_distant(self, pair: Pair, neighbors: list[MatchedPair]) -> MatchedPair:
        a, b = self.saes.pair(pair)
        matched = match_distant(self.matcher, pair, a, b, neighbors, self.metrics)
        self.results.add(matched.rows)
        if self.evaluator is not None:
            # Sums per document are written of neighbors only; those of all distances would outgrow memory.
            self.results.add(row.without_sums() for row in self.evaluator.evaluate(matched, a, b)[0])
        return matched

    def _match_seeds(self, evaluator: Evaluator, pair: Pair) -> MatchedPair:
        """Two seeds of a layer; by every matcher where partners are tested."""
        a, b = self.saes.pair(pair)
        how = self.study.evaluation.functional
        controls = self.study.evaluation.matchers if how is not None and "seeds" in how.pairs else ()
        matched = match_seeds(self.matcher, pair, a, b, self.metrics, controls)
        self.results.add(matched.rows + evaluator.evaluate(matched, a, b)[0])
        return matched


def prepare_steps(plan: Plan, store: Store, record: JobRecord) -> Steps:
    """Read and check everything that a planned job needs, before its long work.

    Results of an earlier attempt in the same record are removed once that is done.

    Raises:
        UserError: an input that cannot work.
    """
    study, pairs, device = plan.study, plan.pairs, plan.device.type
    progress, full = wants_bars(study.progress), study.evaluation.full
    torch.manual_seed(study.seed)
    # Some kilobytes of the model first: they show a wrong, gated or unreachable one before gigabytes of SAEs come.
    headers = check_saes(
        study, pairs, progress, [check_model_facts(store, side) if full else None for side in pairs.sides]
    )
    # The model and the text come before the matching: what can fail on bad input fails before long work.
    d_saes = [next(one.d_model for site, one in headers.items() if site.source == at) for at in range(len(pairs.sides))]
    inputs = prepare(store, study, pairs.sides, d_saes, device, progress) if full else None
    evaluator = None if inputs is None else make_evaluator(store, study, pairs, inputs, plan.metrics)
    exclude = evaluator is not None and study.matching.dead_features is DeadFeatures.exclude
    matcher = PairMatcher(
        store, study.matching, study.solver.on(device, progress), study.folding.name,
        excluded=evaluator.dead if evaluator is not None and exclude else lambda site, sae: None,
        inputs=inputs, seed=study.seed,
        provenance={"sae": study.sae.name, "folding_scale": study.folding.scale.value},
        keep=lambda pair, permutation: permutation.save(record.permutation_path(*pair.layers)),
        null_alpha=study.evaluation.null_alpha,
    )  # fmt: skip
    saes = JobSaes(pairs.sources, device, folding_scale(study, store, inputs))
    record.clear_results()
    if inputs is not None:
        record.write_text(inputs.facts())
    return Steps(
        study=study,
        pairs=pairs,
        store=store,
        saes=saes,
        widths={site: header.width for site, header in headers.items()},
        matcher=matcher,
        evaluator=evaluator,
        metrics=plan.metrics,
        results=Results(record, Labels(metrics=described(plan.metrics.values()), variants=looks(study.evaluation))),
        progress=progress,
    )
