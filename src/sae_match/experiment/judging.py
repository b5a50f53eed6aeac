"""Judging: descriptions of a sample of the pairs of every variant, a judge's verdicts, and the rows they become."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from sae_match.experiment.evaluation import Evaluator
from sae_match.experiment.matching import MatchedPair
from sae_match.experiment.saes import JobSaes
from sae_match.judging.descriptions import Description, explained, from_contexts, read_explanations
from sae_match.judging.judge import Judgement, Judging, Outcome, Question, judge_all, judge_rows, sample_pairs
from sae_match.metrics.metric import MetricRow
from sae_match.pairs import Pair, Site
from sae_match.store import Store

logger = logging.getLogger(__name__)

Descriptions = Mapping[Site, Mapping[int, Description]]
"""By dictionary and feature; a feature without a description is missing."""
Describe = Callable[[Site, set[int]], dict[int, Description]]
"""From a dictionary and some of its features to their descriptions."""


@dataclass(frozen=True)
class JudgedSample:
    """The sampled pairs of one variant of one layer pair."""

    pair: Pair
    variant: str
    features: list[tuple[int, int]]


def judge_pairs(
    store: Store,
    judging: Judging,
    describe: Describe,
    pairs: Sequence[MatchedPair],
    bootstrap_samples: int,
    seed: int,
    progress: bool,
) -> Iterator[tuple[list[MetricRow], list[dict[str, Any]]]]:
    """Judge a sample of every layer pair and variant, one after the other: the rows of each, and one line of
    judgements.jsonl per judged pair of features.

    Args:
        describe: where descriptions come from (`by_explanations`, `by_contexts`).
        bootstrap_samples, seed: of the intervals over judged pairs.

    Raises:
        UserError: explanation files that cannot be read or belong to other SAEs.
    """
    samples = list(_samples(judging, pairs))
    described = _describe_all(describe, samples, progress)
    texts = [_described(sample, described) for sample in samples]
    judge = judging.start([Question(a, b) for each in texts for a, b in each if a and b], store)
    outcomes: Counter[Outcome] = Counter()
    with tqdm(total=sum(len(sample.features) for sample in samples), desc="judging pairs", disable=not progress) as bar:
        for sample, shown in zip(samples, texts, strict=True):
            verdicts = judge_all(judge, shown)
            outcomes.update(verdict.outcome for verdict in verdicts)
            lines = [_line(sample, *one) for one in zip(sample.features, shown, verdicts, strict=True)]
            layers = sample.pair.layers
            bar.update(len(sample.features))
            yield judge_rows(verdicts, layers, sample.variant, bootstrap_samples, seed + layers[0]), lines
    # Also how many pairs have no verdict, and why.
    failed = any(outcomes[outcome] for outcome in (Outcome.error, Outcome.refusal, Outcome.unparsable))
    text = ", ".join(f"{outcomes[outcome]} {outcome.value}" for outcome in Outcome)
    logger.log(logging.WARNING if failed else logging.INFO, "judged pairs: %s", text)


def by_explanations(judging: Judging, folder: str, widths: Mapping[Site, int]) -> Describe:
    """Descriptions from Neuronpedia's explanation files.

    Args:
        widths: number of features by dictionary.
    """

    def describe(site: Site, wanted: set[int]) -> dict[int, Description]:
        texts = read_explanations(folder, site.at, widths[site])
        return {f: explained(texts[f], judging.description_chars) for f in sorted(wanted) if f in texts}

    return describe


def by_contexts(judging: Judging, evaluator: Evaluator, saes: JobSaes) -> Describe:
    """Descriptions from the text on which a feature is most active."""
    inputs = evaluator.inputs

    def describe(site: Site, wanted: set[int]) -> dict[int, Description]:
        top = inputs.top_activations(saes.load(site), site, judging.contexts)
        ids, how = inputs.text.side(0).ids.tolist(), (judging.context_tokens, judging.description_chars)
        found = {
            feature: from_contexts(ids, [inputs.text.place(*at) for at in top.places(feature)], inputs.decode, *how)
            for feature in sorted(wanted)
        }
        return {feature: description for feature, description in found.items() if description is not None}

    return describe


def _samples(judging: Judging, pairs: Sequence[MatchedPair]) -> Iterator[JudgedSample]:
    for matched in pairs:
        for variant in matched.pair.role.judged:
            # By the first layer alone: over distance the same features are judged.
            seed = judging.seed + matched.pair.a.layer
            chosen = sample_pairs(matched.permutations[variant].indices, judging.pairs, seed)
            yield JudgedSample(matched.pair, variant, chosen)


def _describe_all(describe: Describe, samples: Sequence[JudgedSample], progress: bool) -> Descriptions:
    """Descriptions of the features that occur in a sample."""
    wanted: dict[Site, set[int]] = {}
    for sample in samples:
        for side, site in enumerate((sample.pair.a, sample.pair.b)):
            wanted.setdefault(site, set()).update(pair[side] for pair in sample.features)
    described: dict[Site, dict[int, Description]] = {}
    for site in tqdm(sorted(wanted), desc="describing features", disable=not progress):
        described[site] = describe(site, wanted[site])
        silent = len(wanted[site]) - len(described[site])
        logger.info("layer %d: %d features described, %d without", site.layer, len(described[site]), silent)
    return described


def _described(sample: JudgedSample, descriptions: Descriptions) -> list[tuple[Description | None, Description | None]]:
    first, second = (descriptions.get(site, {}) for site in (sample.pair.a, sample.pair.b))
    return [(first.get(feature), second.get(partner)) for feature, partner in sample.features]


def _line(
    sample: JudgedSample,
    features: tuple[int, int],
    texts: tuple[Description | None, Description | None],
    verdict: Judgement,
) -> dict[str, Any]:
    """One line of judgements.jsonl."""
    (feature, partner), (a, b) = features, texts
    return {
        "layer": sample.pair.a.layer,
        "layer_to": sample.pair.b.layer,
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
