"""Paired differences between jobs: the sums on disk give back the jobs' own numbers, and refuse what is not paired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sae_match import UserError
from sae_match.metrics.bootstrap import Bootstrap, DocumentSums, compress_rows
from sae_match.metrics.streaming import ReconstructionStatistics
from sae_match.record.documents import DOCUMENTS, SumsKey, read_documents, write_documents
from sae_match.report.resampling import Interval, paired_difference

Sums = dict[SumsKey, DocumentSums]


def ratio(numerator: list[float], denominator: list[float]) -> DocumentSums:
    return DocumentSums(np.array(numerator), np.array(denominator))


def directory(tmp_path: Path, name: str, sums: Sums) -> Path:
    write_documents(tmp_path / name / DOCUMENTS, sums)
    return tmp_path / name


def key(layer: int = 0, metric: str = "matching_score", text: str = "t") -> SumsKey:
    return SumsKey(layer, layer + 1, "matched", metric, text)


def by_hand(a: list[DocumentSums], b: list[DocumentSums]) -> Interval:
    """One resample at a time, by drawing documents' counts as `Bootstrap` does."""
    counts = np.random.default_rng(0).multinomial(4, [1 / 4] * 4, size=1000)

    def average(pairs: list[DocumentSums], w: np.ndarray) -> float:
        return float(np.mean([(w * s.numerator).sum() / (w * s.denominator).sum() for s in pairs]))

    replicates = [average(a, w) - average(b, w) for w in counts]
    low, high = np.quantile(replicates, (0.025, 0.975))
    return Interval(average(a, np.ones(4)) - average(b, np.ones(4)), float(low), float(high))


def test_a_difference_equals_the_bootstrap_by_hand(tmp_path: Path) -> None:
    ours = [ratio([3, 1, 4, 2], [10, 5, 6, 7]), ratio([2, 2, 2, 3], [4, 8, 5, 6])]
    theirs = [ratio([2, 1, 1, 3], [10, 5, 6, 7]), ratio([1, 3, 2, 2], [4, 8, 5, 6])]
    a, b = (
        directory(tmp_path, name, {key(layer): s for layer, s in enumerate(sums)})
        for name, sums in (("a", ours), ("b", theirs))
    )
    found = paired_difference(a, b, "matching_score")
    assert found == pytest.approx(by_hand(ours, theirs))
    assert found.low < found.value < found.high
    assert paired_difference(a, a, "matching_score") == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("d", [3, 40])
def test_reconstructions_come_back_from_the_file(tmp_path: Path, d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    x = 5 + torch.randn(12, 6, d, generator=generator) * torch.arange(1, d + 1)
    guess = x + torch.randn(x.shape, generator=generator) + 0.4
    statistics, bootstrap = ReconstructionStatistics(6, d), Bootstrap(6, 200)
    statistics.update(x, guess, torch.arange(12) // 2)
    sums = statistics.sums()
    whole = DocumentSums(
        sums.numerator, sums.denominator, sums.tokens, statistics.error.numpy(), statistics.target.numpy()
    )
    path = directory(tmp_path, "a", {key(metric="explained_variance"): sums}) / DOCUMENTS
    (stored,) = read_documents(path).values()
    assert stored.numerator_vector is not None
    assert stored.numerator_vector.shape == (6, min(6, d))
    for metric in ("explained_variance", "r2", "fvu"):
        expected, again = (bootstrap.from_sums(found, metric) for found in (whole, stored))
        assert again.value == pytest.approx(expected.value, abs=1e-12)
        assert again.replicates == pytest.approx(expected.replicates, abs=1e-12)


def test_compression_keeps_the_length_of_every_sum() -> None:
    rng = np.random.default_rng(1)
    vectors, weights = rng.normal(size=(4, 9)), rng.integers(0, 3, size=(20, 4)).astype(float)
    small = compress_rows(vectors)
    assert small.shape == (4, 4)
    assert np.linalg.norm(weights @ small, axis=1) == pytest.approx(np.linalg.norm(weights @ vectors, axis=1))


def test_what_is_not_paired_is_refused(tmp_path: Path) -> None:
    sums = ratio([1, 2, 3], [4, 5, 6])
    a = directory(tmp_path, "a", {key(): sums, key(metric="explained_variance"): sums})
    other_text = directory(tmp_path, "b", {key(text="u"): sums})
    other_layers = directory(tmp_path, "c", {key(1): sums})
    for other in (other_text, other_layers):
        with pytest.raises(UserError, match="different documents, windows or layers"):
            paired_difference(a, other, "matching_score")
    with pytest.raises(UserError, match="no sums per document"):
        paired_difference(a, a, "weight_mse/W_dec")
    for lacking, variant in ((a, "greedy"), (tmp_path, "matched")):
        with pytest.raises(UserError, match=rf"no matching_score of {variant} per document"):
            paired_difference(a, lacking, "matching_score", variant)
    (other_text / DOCUMENTS).write_bytes(b"not parquet")
    with pytest.raises(UserError, match="damaged"):
        paired_difference(a, other_text, "matching_score")


def test_equal_sums_are_equal_files(tmp_path: Path) -> None:
    sums = {key(layer): ratio([1, 2], [3, 4]) for layer in (2, 0, 1)}
    a, b = directory(tmp_path, "a", sums), directory(tmp_path, "b", dict(sorted(sums.items())))
    assert (a / DOCUMENTS).read_bytes() == (b / DOCUMENTS).read_bytes()
