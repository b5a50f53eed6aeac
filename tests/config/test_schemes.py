"""`scheme=`: a whole matching scheme by one name, which single choices still override."""

from __future__ import annotations

import pytest

from sae_match.rules import check_config
from sae_match.study import Study
from tests.config.test_configuration import composed, options


def scheme(cfg: Study) -> tuple[str, str, bool]:
    return cfg.matching.metric.value, cfg.folding.name.value, cfg.matching.include_bias


def test_the_papers_scheme_is_the_default() -> None:
    assert composed("scheme=paper") == composed()
    assert scheme(composed()) == ("both", "theta", True)


def test_the_best_data_free_scheme_is_unfolded_without_the_bias() -> None:
    assert scheme(composed("scheme=best_data_free")) == ("both", "none", False)
    assert scheme(composed("scheme=best_data_free", "folding=theta")) == ("both", "theta", False)
    assert scheme(composed("scheme=best_data_free", "matching=decoder")) == ("decoder", "none", False)


@pytest.mark.parametrize("name", options("scheme"))
def test_a_scheme_composes_with_an_experiment(name: str) -> None:
    cfg = composed(f"scheme={name}", "experiment=seed_ceiling")
    check_config(cfg)
    assert (cfg.layers.first, cfg.layers.last) == (13, 15)
