"""`layers.pair`, `capture`, and the experiments that answer common questions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sae_match import UserError
from sae_match.pairs import captured_layers, job_pairs, span
from sae_match.record.configuration import science_hash
from sae_match.rules import check_config, check_train_config
from sae_match.study import Layers, span_of
from tests.config.test_configuration import composed, composed_training


def plain(*overrides: str) -> dict[str, object]:
    return composed(*overrides).config


def test_a_pair_is_the_same_job_as_its_two_layers() -> None:
    assert plain("layers.pair=13") == plain("layers.first=13", "layers.last=14")
    assert composed_training("model=gpt2").layers == Layers(11, 18)


@pytest.mark.parametrize("given", [["layers.first=12"], ["layers.last=15"], ["layers.first=13", "layers.last=14"]])
def test_a_pair_beside_a_span_is_refused(given: list[str]) -> None:
    with pytest.raises(UserError, match=r"layers.pair=13 and layers.*give one of them"):
        composed("layers.pair=13", *given)


def test_a_list_without_gaps_is_a_span() -> None:
    assert plain("layers.list=[13,14,15]") == plain("layers.first=13", "layers.last=15")
    cfg = composed("layers.list=[12,14,17]")
    check_config(cfg)
    assert cfg.layers == Layers(12, 17, list=[12, 14, 17])
    assert composed("layers.list=[12,14,17]", "layers.first=12", "layers.last=17").config == cfg.config
    assert [pair.layers for pair in job_pairs(cfg).own] == [(12, 14), (14, 17)]
    assert span(cfg) == captured_layers(cfg) == [12, 14, 17]
    assert captured_layers(composed("layers.list=[12,14,17]", "capture.last=18")) == list(range(12, 19))
    assert science_hash(cfg.config) != science_hash(plain("layers.first=12", "layers.last=17"))


def test_saes_are_trained_for_listed_layers() -> None:
    cfg = composed_training("layers.list=[11,13]")
    check_train_config(cfg)
    assert span_of(cfg.layers) == [11, 13]
    assert composed_training("layers.list=[11,13]", "layers.last=13").config == cfg.config
    with pytest.raises(UserError, match=r"layers.list=\[11, 13\] and layers.last=18 both choose layers"):
        composed_training("layers.list=[11,13]", "layers.last=18")


def test_distances_of_a_list_are_those_of_its_layers() -> None:
    cfg = composed("layers.list=[11,13,14,18]", "composition.max_distance=4")
    check_config(cfg)
    assert [pair.layers for pair in job_pairs(cfg).distant] == [(11, 14)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["layers.list=[12,14]", "layers.first=13"], r"layers.list=\[12, 14\] and layers.first=13 both choose layers"),
        (["layers.list=[12,14]", "layers.pair=12"], "both choose layers"),
        (["layers.list=[14,12]"], r"layers.list=\[14, 12\]: must be ascending"),
        (["layers.list=[12,12,14]"], "must be ascending, each layer once"),
        (["layers.list=[12]"], "a span needs at least two layers"),
        (["layers.list=[12,30]"], "the SAEs smollm2_135m cover layers 0..29"),
        (["layers.list=[12,14]", "composition.max_distance=2"], "leaves nothing to compose"),
    ],
)
def test_lists_that_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(composed(*given))


def test_a_pair_outside_the_saes_is_refused() -> None:
    with pytest.raises(UserError, match=r"layers.first=29, layers.last=30: the SAEs smollm2_135m cover layers 0..29"):
        check_config(composed("layers.pair=29"))


def test_library_callers_name_both_layers() -> None:
    cfg = composed()
    with pytest.raises(UserError, match="short for first and last"):
        check_config(replace(cfg, layers=Layers(first=13, last=14, pair=13)))


def test_what_is_captured_decides_no_result() -> None:
    assert science_hash(plain("layers.pair=13")) == science_hash(
        plain("layers.pair=13", "capture.first=11", "capture.last=18")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["capture.first=14"], "within 0..13"),
        (["capture.first=-1"], "within 0..13"),
        (["capture.last=13"], "at least layers.last=14"),
        (["capture.last=30"], "has blocks 0..29"),
    ],
)
def test_a_capture_covers_the_span_and_exists(change: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(composed("layers.pair=13", *change))


def test_each_pair_captures_all_layers_once() -> None:
    cfg = composed("experiment=each_pair", "layers.pair=16")
    check_config(cfg)
    assert (cfg.layers.first, cfg.layers.last, cfg.capture.first, cfg.capture.last) == (16, 17, 11, 18)
    gemma = composed("experiment=each_pair", "sae=gemma_scope_2b", "model=gemma_2_2b", "layers.pair=0")
    assert (gemma.layers.last, gemma.capture.first, gemma.capture.last) == (1, 0, 25)


def test_wide_saes_keep_no_products() -> None:
    cfg = composed("experiment=wide")
    check_config(cfg)
    assert (cfg.sae.width, cfg.solver.name, cfg.solver.cache) == ("65k", "certified", False)
    assert (cfg.layers.first, cfg.layers.last) == (12, 13)


def test_one_pair_is_the_first_or_the_one_asked_for() -> None:
    assert composed("experiment=one_pair").layers == Layers(11, 12)
    assert composed("experiment=one_pair", "layers.pair=14").layers == Layers(14, 15)
