"""Which pairs are judged, and verdicts as tidy rows: shares of the levels with intervals, and pairs without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_match.judging.judge import FAILURES, Judgement, Level, Outcome
from sae_match.metrics.bootstrap import Bootstrap
from sae_match.metrics.metric import MetricRow

SHARE, COUNT = "judge", "judge_count"
UNMATCHED = -1


def sample_pairs(indices: Int[Tensor, " F_a"], n: int, seed: int) -> list[tuple[int, int]]:
    """n pairs (feature, partner) of a matching, in ascending order of the feature; all where there are fewer.

    The features of A are put into one random order that depends on the seed and their number alone, and the first n
    with a partner are taken: matchings of the same SAEs are judged on the same features wherever these are matched.

    Args:
        indices: partner of each feature, -1 where it has none.
    """
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    matched = order[indices[order] != UNMATCHED][:n].sort().values
    return list(zip(matched.tolist(), indices[matched].tolist(), strict=True))


def judge_rows(
    judgements: Sequence[Judgement], layers: tuple[int, int], variant: str, samples: int = 1000, seed: int = 0
) -> list[MetricRow]:
    """`judge/same`, `/maybe`, `/different` (shares of the answered pairs, adding up to 1) and `judge/score` (their mean
    of 1 to 3, as in the paper's Figure 8), with 95 % intervals over pairs: Wilson's for shares, a bootstrap for the
    score; `judge_count/answered` and one count per way to fail; `judge/order_disagreement`, the share of pairs asked in
    both orders that got two levels.

    Shares are NaN where no pair was answered.
    """
    answered = np.array([judgement.outcome is Outcome.answered for judgement in judgements])
    levels = [judgement.level for judgement in judgements]
    rows: list[MetricRow] = []
    n = int(answered.sum())
    if judgements:
        bootstrap = Bootstrap(len(judgements), samples, seed)
        values = {level.value: np.array([found is level for found in levels]) for level in reversed(Level)}
        values["score"] = np.array([0 if level is None else level.score for level in levels])
        for name, numbers in values.items():
            estimate = bootstrap.ratio(numbers.astype(np.float64), answered.astype(np.float64))
            if name != "score" and n > 0:
                estimate = replace(estimate, trials=n)
            rows.append(MetricRow(*layers, variant, f"{SHARE}/{name}", estimate.value, n, estimate))
    rows += _disagreement(judgements, layers, variant)
    for outcome in (Outcome.answered, *FAILURES):
        count = sum(judgement.outcome is outcome for judgement in judgements)
        rows.append(MetricRow(*layers, variant, f"{COUNT}/{outcome.value}", float(count), len(judgements)))
    return rows


def _disagreement(judgements: Sequence[Judgement], layers: tuple[int, int], variant: str) -> list[MetricRow]:
    both = [j for j in judgements if j.outcome is Outcome.answered and len(j.answers) == 2]
    if not both:
        return []
    share = sum(len({answer.level for answer in j.answers}) > 1 for j in both) / len(both)
    return [MetricRow(*layers, variant, f"{SHARE}/order_disagreement", share, len(both))]
