"""Judging: descriptions of a sample of the pairs of every variant, a judge's verdicts, and the rows they become."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from sae_match.evaluation.far_pair import FAR_VARIANTS
from sae_match.evaluation.rows import MetricRow
from sae_match.evaluation.top_activations import top_activations
from sae_match.experiment.composition_step import FarPair
from sae_match.experiment.evaluation_step import Evaluator
from sae_match.experiment.matching_step import PairMatching
from sae_match.experiment.saes_in_span import SpanSaes
from sae_match.judging.descriptions import Description, explained, from_contexts, read_explanations
from sae_match.judging.judge import (
    FAILURES,
    Judgement,
    Judging,
    Outcome,
    Question,
    judge_all,
    judge_rows,
    sample_pairs,
)
from sae_match.plan.checks import VARIANTS
from sae_match.record.job import JobRecord
from sae_match.store import Store
from sae_match.study import Study

logger = logging.getLogger(__name__)

Descriptions = dict[int, dict[int, Description]]
"""By layer and feature; a feature without a description is missing."""


@dataclass(frozen=True)
class JudgedSample:
    """The sampled pairs of one variant of one layer pair."""

    layer: int
    layer_to: int
    variant: str
    pairs: list[tuple[int, int]]


def judging_rows(
    store: Store,
    study: Study,
    saes: SpanSaes,
    matchings: Sequence[PairMatching | FarPair],
    record: JobRecord,
    evaluator: Evaluator | None,
    progress: bool,
) -> list[MetricRow]:
    """Shares of the levels for every layer pair and variant; judgements.jsonl grows with each layer pair.

    Args:
        matchings: neighbours, then layers further apart.
        evaluator: model and residual streams, where features are described by their top contexts.

    Raises:
        UserError: explanation files that cannot be read or belong to other SAEs.
    """
    judging = study.judging
    if not judging.enabled:
        return []
    samples = list(_samples(judging, matchings))
    descriptions = _descriptions(judging, saes, samples, evaluator, progress)
    rows: list[MetricRow] = []
    lines: list[dict[str, Any]] = []
    questions = sum(len(sample.pairs) for sample in samples)
    with tqdm(total=questions, desc="judging pairs", disable=not progress) as bar:
        pairs = [pair for sample in samples for pair in _described(sample, descriptions)]
        asked = [Question(a, b) for a, b in pairs if a is not None and b is not None]
        judge = judging.start(asked, store)
        for sample in samples:
            verdicts = judge_all(judge, _described(sample, descriptions))
            lines += [_line(sample, i, verdict, descriptions) for i, verdict in enumerate(verdicts)]
            record.write_judgements(lines)
            seed = study.seed + sample.layer
            layers = sample.layer, sample.layer_to
            rows += judge_rows(verdicts, layers, sample.variant, study.evaluation.bootstrap_samples, seed)
            bar.update(len(sample.pairs))
    _report(rows)
    return rows


def _samples(judging: Judging, matchings: Sequence[PairMatching | FarPair]) -> Iterator[JudgedSample]:
    for pair in matchings:
        for variant in FAR_VARIANTS if isinstance(pair, FarPair) else VARIANTS:
            # By the first layer alone: over distance the same features are judged.
            chosen = sample_pairs(pair.permutations[variant].indices, judging.pairs, judging.seed + pair.layer)
            yield JudgedSample(pair.layer, pair.layer_to, variant, chosen)


def _descriptions(
    judging: Judging, saes: SpanSaes, samples: list[JudgedSample], evaluator: Evaluator | None, progress: bool
) -> Descriptions:
    """Descriptions of the features that occur in a sample."""
    wanted: dict[int, set[int]] = {layer: set() for layer in saes.layers}
    for sample in samples:
        for feature, partner in sample.pairs:
            wanted[sample.layer].add(feature)
            wanted[sample.layer_to].add(partner)
    described: Descriptions = {}
    for layer in tqdm(saes.layers, desc="describing features", disable=not progress):
        if judging.neuronpedia is not None:
            texts = read_explanations(judging.neuronpedia, layer, saes.facts[layer].width)
            found = {f: explained(texts[f], judging.description_chars) for f in sorted(wanted[layer]) if f in texts}
            described[layer] = found
        elif evaluator is not None:
            described[layer] = _by_contexts(judging, evaluator, layer, wanted[layer])
        silent = len(wanted[layer]) - len(described[layer])
        logger.info("layer %d: %d features described, %d without", layer, len(described[layer]), silent)
    return described


def _by_contexts(judging: Judging, evaluator: Evaluator, layer: int, wanted: set[int]) -> dict[int, Description]:
    study = evaluator.study
    top = top_activations(
        evaluator.saes.load(layer),
        evaluator.streams.layer(layer),
        judging.contexts,
        study.evaluation.batch_windows,
        study.model.sink_positions,
    )
    ids = evaluator.windows.ids.tolist()
    tokenizer = evaluator.model.tokenizer

    def decode(tokens: Any) -> str:
        return str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    found = {
        feature: from_contexts(ids, top.places(feature), decode, judging.context_tokens, judging.description_chars)
        for feature in sorted(wanted)
    }
    return {feature: description for feature, description in found.items() if description is not None}


def _described(sample: JudgedSample, descriptions: Descriptions) -> list[tuple[Description | None, Description | None]]:
    first, second = descriptions[sample.layer], descriptions[sample.layer_to]
    return [(first.get(feature), second.get(partner)) for feature, partner in sample.pairs]


def _line(sample: JudgedSample, i: int, verdict: Judgement, descriptions: Descriptions) -> dict[str, Any]:
    """One line of judgements.jsonl."""
    feature, partner = sample.pairs[i]
    a, b = descriptions[sample.layer].get(feature), descriptions[sample.layer_to].get(partner)
    return {
        "layer": sample.layer,
        "layer_to": sample.layer_to,
        "variant": sample.variant,
        "feature": feature,
        "partner": partner,
        "outcome": verdict.outcome.value,
        "level": None if verdict.level is None else verdict.level.value,
        "overlap": verdict.overlap,
        "text_a": None if a is None else a.text,
        "text_b": None if b is None else b.text,
        "answers": [asdict(answer) for answer in verdict.answers],
    }


def _report(rows: list[MetricRow]) -> None:
    """Say how many pairs have no verdict, and why."""
    counts = {outcome: 0 for outcome in Outcome}
    for row in rows:
        kind, _, name = row.metric.partition("/")
        if kind == "judge_count":
            counts[Outcome(name)] += int(row.value)
    failed = sum(counts[outcome] for outcome in FAILURES if outcome is not Outcome.undescribed)
    text = ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items())
    logger.log(logging.WARNING if failed else logging.INFO, "judged pairs: %s", text)
