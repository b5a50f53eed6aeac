"""One span as one job and split over two: the report merges the two to the same record."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from sae_match.experiment import run
from sae_match.record.pairs import read_pairs
from sae_match.report import find_records
from sae_match.report.merge import merge_spans
from sae_match.study import Study
from tests.builders import scientific

NO_SUMS = ("matching_score_per_feature", "_to_ceiling")
"""Numbers whose intervals cannot be made again from the sums per document."""


def test_a_split_span_merges_to_the_unsplit_job(
    configured: Callable[..., Study], random_saes: Path, tmp_path: Path
) -> None:
    whole = run(configured(random_saes, output="whole"))
    run(configured(random_saes, "layers.last=2", output="split/0"))
    run(configured(random_saes, "layers.first=2", output="split/1"))
    merged = merge_spans(find_records([tmp_path / "split"]))
    (record,) = merged.records
    assert record.name == "0 + 1" and record.pairs is not None
    keys = ["layer", "layer_to", "variant", "metric"]
    timed = r"^(?:solver_seconds|solver/seconds|solver/peak|solver/cached)"
    tables = [table[~table["metric"].str.match(timed)].set_index(keys).sort_index()[["value", "low", "high"]]
              for table in (record.pairs, read_pairs(whole.directory / "pairs.csv"))]  # fmt: skip
    pd.testing.assert_frame_equal(tables[0].astype(float), tables[1].astype(float), rtol=1e-6)
    found, expected = scientific(record.metrics), scientific(whole.metrics)
    assert found.keys() <= expected.keys()
    for name, value in found.items():
        assert math.isclose(value, expected[name], rel_tol=1e-6, abs_tol=1e-9), name
    missing = expected.keys() - found.keys()
    assert {name for name in missing if not any(part in name for part in NO_SUMS)} == set()
    assert "explained_variance/encode_permute_decode_low" in found and "delta_loss_difference/layer_drop_high" in found
    assert any("matching_score_per_feature" in note for note in merged.notes)
    # The mean of the jobs' means is something else.
    parts = [part.metrics["matching_score"] for part in record.parts]
    assert sum(parts) / 2 != pytest.approx(whole.metrics["matching_score"], rel=1e-6)
