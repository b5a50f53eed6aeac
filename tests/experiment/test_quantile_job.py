"""Jobs with quantile splices: their ends are known splices, their losses are cached apart, nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from sae_match import UserError
from sae_match.experiment import Result, run
from sae_match.rules import check_config
from sae_match.study import Study

Configured = Callable[..., Study]


def curve(result: Result, variant: str, metric: str) -> pd.Series:
    table = result.pairs
    return table[(table.variant == variant) & (table.metric == metric)].set_index("layer")["value"]


@pytest.mark.figures
def test_the_ends_are_known_splices(configured: Configured, random_saes: Path) -> None:
    """q = 1 is the full match; q = 0 differs from the previous layer's reconstruction by its bias only."""
    result = run(configured(random_saes, "evaluation.quantiles=[0,0.5,1]"))
    for metric in ("explained_variance", "r2", "delta_loss"):
        full = curve(result, "quantile_1", metric)
        assert full.tolist() == pytest.approx(curve(result, "encode_permute_decode", metric).tolist(), abs=1e-5)
        assert len(full) == 3
    none, previous = curve(result, "quantile_0", "explained_variance"), "encode_decode_previous"
    assert none.tolist() == pytest.approx(curve(result, previous, "explained_variance").tolist(), abs=1e-6)
    assert none.tolist() != pytest.approx(curve(result, "quantile_0.5", "explained_variance").tolist(), abs=1e-3)
    assert {"delta_loss/quantile_0.5_low", "explained_variance/quantile_0_high"} <= result.metrics.keys()
    assert (result.directory / "figures" / "quantiles.png").stat().st_size > 10_000
    # A second job in other units finds the losses of this one in the cache and must not take them for its own.
    raw = run(configured(random_saes, "evaluation.quantiles=[0.5]", "evaluation.splice_units=raw", output="raw"))
    assert (curve(raw, "quantile_0.5", "delta_loss") != curve(result, "quantile_0.5", "delta_loss")).all()
    again = run(configured(random_saes, "evaluation.quantiles=[0.5,0.25]", output="again"))
    assert curve(again, "quantile_0.5", "delta_loss").equals(curve(result, "quantile_0.5", "delta_loss"))
    assert (curve(again, "quantile_0.25", "delta_loss") != curve(again, "quantile_0.5", "delta_loss")).all()


def test_perfect_saes_carry_everything_at_every_quantile(configured: Configured, perfect_saes: Path) -> None:
    result = run(configured(perfect_saes, "evaluation.quantiles=[0,0.3,1]"))
    for q in ("0", "0.3", "1"):
        for metric in ("explained_variance", "delta_loss"):
            dropped = curve(result, "layer_drop", metric)
            assert curve(result, f"quantile_{q}", metric).tolist() == pytest.approx(dropped.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.quantiles=[0.5,1.1]"], r"evaluation\.quantiles\.1=1\.1: must be less than or equal to 1"),
        (["evaluation.quantiles=[-0.1]"], "must be greater than or equal to 0"),
        (["evaluation.quantiles=[0.5,0.5]"], "each must be named once"),
        (["evaluation=weights_only", "evaluation.quantiles=[0.5]"], "need evaluation=full"),
    ],
)
def test_rules(configured: Configured, random_saes: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(configured(random_saes, *overrides))
