"""`sae.l0=similar`: the rule against a brute-force search, ties, the published list, and local files."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_match import UserError
from sae_match.saes import SaeSource
from sae_match.saes.formats.gemma_scope import GemmaScope, choose_l0, choose_similar, published_l0s
from tests.saes.layouts import write_gemma_scope

REPO = "google/gemma-scope-2b-pt-res"
L0S = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4, unique=True), min_size=1, max_size=4)


def config(root: Path | None = None, **fields: object) -> GemmaScope:
    defaults = {"root": None if root is None else str(root), "repo_id": REPO, "width": "16k", "l0": "similar"}
    return GemmaScope(name="g", last_layer=25, **{**defaults, **fields})  # type: ignore[arg-type]


@given(L0S)
def test_no_other_choice_is_more_even(l0s: list[list[int]]) -> None:
    chosen = list(choose_similar(dict(enumerate(l0s))).values())
    best = min(Fraction(max(c), min(c)) for c in product(*l0s))
    assert Fraction(max(chosen), min(chosen)) == best
    assert all(l0 in have for l0, have in zip(chosen, l0s, strict=True))


@given(L0S, st.integers(1, 60))
def test_near_asks_for_a_level(l0s: list[list[int]], near: int) -> None:
    for l0, have in zip(choose_similar(dict(enumerate(l0s)), near).values(), l0s, strict=True):
        assert abs(math.log(l0 / near)) <= min(abs(math.log(other / near)) for other in have) + 1e-12


def test_ties_by_hand() -> None:
    # 10..20 and 80..160 are equally even; 80 * 160 is nearer to 100 * 100 than 10 * 20 is.
    assert choose_similar({0: [10, 80], 1: [20, 160]}) == {0: 80, 1: 160}
    # Layer 1 has two in the window 70..90; sqrt(6300) = 79.4 is nearer to 75 than to 86 in ratio.
    assert choose_similar({0: [70], 1: [75, 86], 2: [90]}) == {0: 70, 1: 75, 2: 90}
    assert choose_similar({5: [83, 84]}) == {5: 84}  # each alone is perfectly even: the nearer to 100


def test_the_published_saes() -> None:
    layers = range(10, 21)
    available = {layer: published_l0s(REPO, "16k", layer) for layer in layers}
    near = choose_similar(available, 75)
    default = [choose_l0(REPO, "16k", layer, "canonical") for layer in layers]
    assert (min(near.values()), max(near.values())) == (71, 83)
    assert max(near.values()) / min(near.values()) < max(default) / min(default)
    evenest = choose_similar(available)
    assert (min(evenest.values()), max(evenest.values())) == (21, 23)


def test_a_source_chooses_across_its_span() -> None:
    span = tuple(range(10, 21))
    source = SaeSource(config(l0_near=75), span)
    assert source.files(10) == ("layer_10/width_16k/average_l0_77/params.npz",)
    # Alone, layer 10 is as even with any of its L0s.
    assert SaeSource(config()).files(10) == ("layer_10/width_16k/average_l0_77/params.npz",)
    assert SaeSource(config(), span).files(10) == ("layer_10/width_16k/average_l0_21/params.npz",)


def test_with_local_files_the_choice_is_among_them(tmp_path: Path) -> None:
    for layer, l0 in ((3, 59), (3, 20), (4, 124), (4, 61)):
        write_gemma_scope(tmp_path, layer, l0)
    source = SaeSource(config(tmp_path), (3, 4))
    assert [source.locate([layer])[layer].parent.name for layer in (3, 4)] == ["average_l0_59", "average_l0_61"]


def test_nothing_to_choose_from() -> None:
    with pytest.raises(UserError, match=r"no SAEs to choose from at layers \[1\]"):
        choose_similar({0: [3], 1: []})
    with pytest.raises(UserError, match="only for layers 12"):
        SaeSource(config(width="32k"), (11, 12)).files(12)
