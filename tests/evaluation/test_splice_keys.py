"""What the key of a splice holds: everything by default, and just what it reads where a splice says so."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from sae_match import Permutation, UserError
from sae_match.evaluation.controls import Random
from sae_match.evaluation.linear_map import LinearMapSplice
from sae_match.evaluation.settings import Evaluation, EvaluationLevel
from sae_match.evaluation.splices import BoundSplice, Splice, SplicePair, SpliceUnits, bind_all, first_equals
from sae_match.evaluation.standard_splices import (
    STANDARD,
    EncodeDecodeCurrent,
    EncodeDecodePrevious,
    EncodePermuteDecode,
    LayerDrop,
    Quantiles,
)
from sae_match.options import option
from tests.builders import random_sae

A, B = random_sae(seed=1), random_sae(seed=2)
MATCHED = Permutation.random(24, seed=3)
PAIR = SplicePair(
    A,
    B,
    {"matched": MATCHED, "vanilla": Permutation.identity(24)},
    SpliceUnits.theta,
    layers=(4, 5),
    fit=SimpleNamespace(key="text", layer=lambda layer: torch.zeros(2, 3, 8)),
)
SCALE = torch.full((24,), 0.7)
OTHERS = {
    "sae_a": replace(PAIR, a=random_sae(seed=7)),
    "sae_b": replace(PAIR, b=random_sae(seed=7)),
    "scale_a": replace(PAIR, a=A.replace(scale=SCALE)),
    "scale_b": replace(PAIR, b=B.replace(scale=SCALE)),
    "matched": replace(PAIR, permutations={**PAIR.permutations, "matched": Permutation.random(24, seed=9)}),
    "vanilla": replace(PAIR, permutations={**PAIR.permutations, "vanilla": Permutation.random(24, seed=9)}),
    "units": replace(PAIR, units=SpliceUnits.raw),
    "layer_a": replace(PAIR, layers=(3, 5)),
    "layer_b": replace(PAIR, layers=(4, 6)),
    "fit": replace(PAIR, fit=SimpleNamespace(key="other text")),
    "batch_windows": replace(PAIR, batch_windows=3),
    "sink_positions": replace(PAIR, sink_positions=2),
}
"""The pair with one thing changed."""


@option
class Careless(Splice):
    """A splice that says nothing about what it reads."""

    name: str = "careless"
    share: float = 0.5

    def bind(self, pair: SplicePair) -> dict[str, BoundSplice]:
        return {self.name: self.bound(pair, lambda activations: self.share * pair.b.decode(activations.f_b))}


def changed(splice: Splice, name: str) -> set[str]:
    """What changes the key of a variant."""
    own = splice.bind(PAIR)[name].key()
    return {what for what, pair in OTHERS.items() if splice.bind(pair)[name].key() != own}


PERMUTED = {"sae_a", "sae_b", "scale_a", "scale_b", "matched", "units", "layer_a"}


@pytest.mark.parametrize(
    ("splice", "name", "wanted"),
    [
        (Careless(), "careless", set(OTHERS)),
        (EncodePermuteDecode(), "encode_permute_decode", PERMUTED),
        (EncodePermuteDecode(), "encode_permute_decode_vanilla", PERMUTED - {"matched"} | {"vanilla"}),
        (EncodeDecodeCurrent(), "encode_decode_current", {"sae_b"}),
        (EncodeDecodePrevious(), "encode_decode_previous", {"sae_a", "layer_a"}),
        (LayerDrop(), "layer_drop", {"layer_a"}),
        (Quantiles(quantiles=(0.5, 1.0)), "quantile_0.5", PERMUTED),
        (LinearMapSplice(), "linear_map", {"layer_a", "layer_b", "fit", "sink_positions"}),
    ],
)
def test_a_key_holds_what_the_value_depends_on(splice: Splice, name: str, wanted: set[str]) -> None:
    assert changed(splice, name) == wanted


def test_raw_units_know_no_theta_but_quantiles_choose_their_pairs_by_it() -> None:
    raw = replace(PAIR, units=SpliceUnits.raw)
    scaled = replace(raw, a=A.replace(scale=SCALE))
    quantiles = Quantiles(quantiles=(0.5,))
    assert EncodePermuteDecode().bind(raw)["encode_permute_decode"].key() == (
        EncodePermuteDecode().bind(scaled)["encode_permute_decode"].key()
    )
    assert quantiles.bind(raw)["quantile_0.5"].key() != quantiles.bind(scaled)["quantile_0.5"].key()


def test_arguments_are_in_the_key_and_names_are_not() -> None:
    key = Careless().bind(PAIR)["careless"].key()
    assert key == Careless(name="other", label="another", style=("#000000", "o", "-")).bind(PAIR)["other"].key()
    assert key != Careless(share=0.25).bind(PAIR)["careless"].key()
    keys = [Quantiles(quantiles=qs).bind(PAIR)["quantile_0.5"].key() for qs in ((0.5,), (0.1, 0.5))]
    assert keys[0] == keys[1]


def test_equal_splices_are_found() -> None:
    pair = replace(PAIR, permutations={"matched": MATCHED, "exact": MATCHED, "random": Permutation.random(24, seed=5)})
    firsts = first_equals(bind_all(STANDARD, pair))
    assert firsts["encode_permute_decode_exact"] == "encode_permute_decode"
    assert {name for name, first in firsts.items() if name == first} == set(firsts) - {"encode_permute_decode_exact"}


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two splices are called layer_drop"):
        bind_all((LayerDrop(), Careless(name="layer_drop")), PAIR)


def test_a_fitted_splice_needs_text() -> None:
    with pytest.raises(UserError, match="fitted = True"):
        LinearMapSplice().fitted_map(replace(PAIR, fit=None))


@pytest.mark.parametrize("kind", ["controls", "splices"])
def test_names_of_the_jobs_own_rows_are_refused(kind: str) -> None:
    entry = Random(name="matched") if kind == "controls" else LayerDrop(name="ceiling")
    with pytest.raises(ValidationError, match="own rows"):
        Evaluation(level=EvaluationLevel.full, **{kind: {"mine": entry}})
