"""The judging group's rules and its paper experiment."""

from __future__ import annotations

import pytest

from sae_match import UserError
from sae_match.judging.endpoint import EndpointJudge
from sae_match.rules import check_config
from tests.config.test_configuration import composed, options

ENDPOINT = "judging=endpoint"


@pytest.mark.parametrize("option", options("judging"))
def test_every_judge_composes_and_passes(option: str) -> None:
    cfg = composed(f"judging={option}")
    check_config(cfg)
    assert cfg.judging.name == option


def test_no_judge_is_the_default() -> None:
    assert not composed().judging.enabled


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["judging=offline", "judging.pairs=0"], r"judging\.pairs=0: must be greater than or equal to 1"),
        (["judging=offline", "judging.maybe_at=0.6"], "0 < maybe_at <= same_at <= 1"),
        (["judging=offline", "judging.same_at=nan"], r"judging\.same_at=nan"),
        (["judging=offline", "+judging.model=x"], r"unknown configuration key: judging\.model"),
        (["judging=offline", "judging.neuronpedia=DIR"], r"must contain \{layer\}"),
        (["judging=offline", "judging.neuronpedia='{layer}'", "judging.overlap=contexts"], "name no places"),
        (["judging=offline", "evaluation=weights_only"], "or give explanation files"),
        ([ENDPOINT, "judging.model=null"], r"judging\.model=None: must be a valid string"),
        ([ENDPOINT, "judging.base_url=null"], r"judging\.base_url=None: must be a valid string"),
        ([ENDPOINT, "judging.base_url=file:///etc/passwd"], "must be an http or https address"),
        ([ENDPOINT, "judging.base_url=http://x:y/v1"], "not a valid address"),
        ([ENDPOINT, "judging.temperature=-1"], r"judging\.temperature=-1"),
        ([ENDPOINT, "judging.timeout_s=0"], r"judging\.timeout_s=0"),
        ([ENDPOINT, "judging.max_cost=1"], "not both judging.price_input and judging.price_output"),
    ],
)
def test_broken_rules(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(composed(*overrides))


@pytest.mark.parametrize("override", ["judging.base_url=https://me:sk-1@x/v1", "judging.api_key_variable=sk-1"])
def test_secrets_in_the_configuration_are_refused_without_repeating_them(override: str) -> None:
    with pytest.raises(UserError) as error:
        check_config(composed(ENDPOINT, override))
    assert "sk-1" not in str(error.value)


def test_figure_4_is_the_papers_and_runs_on_the_demo() -> None:
    paper = composed(
        "experiment=fig4_llm_judge", "sae=gemma_scope_2b", "sae.l0=paper", "model=gemma_2_2b", "dataset=openwebtext",
        "judging.neuronpedia='DIR/gemma-2-2b/{layer}-gemmascope-res-16k/explanations'",
    )  # fmt: skip
    check_config(paper)
    assert isinstance(paper.judging, EndpointJudge)
    assert (paper.judging.model, paper.judging.pairs, paper.judging.order) == ("gpt-4o-mini", 100, "both")
    demo = composed("experiment=fig4_llm_judge", "judging=offline")
    check_config(demo)
    assert (demo.judging.name, demo.judging.pairs, demo.sae.name) == ("offline", 100, "smollm2_135m")
