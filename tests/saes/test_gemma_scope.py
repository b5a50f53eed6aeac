"""Gemma Scope's files, and `sae.l0`: the published lists, `similar` against a brute-force search, ties, local files."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_match import SparseAutoencoder, UserError
from sae_match.saes import SaeSource
from sae_match.saes.formats.base import l0_of_layer
from sae_match.saes.formats.gemma_scope import GemmaScope, choose_l0, choose_similar, published_l0s
from tests.saes.layouts import random_tensors, write_gemma_scope

REPO = "google/gemma-scope-2b-pt-res"
L0S = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4, unique=True), min_size=1, max_size=4)


def config(root: Path | None = None, **fields: Any) -> GemmaScope:
    defaults = {"root": None if root is None else str(root), "repo_id": REPO, "width": "16k"}
    return GemmaScope(name="gemma", last_layer=25, **{**defaults, **fields})


def test_gemma_scope_layout(tmp_path: Path) -> None:
    write_gemma_scope(tmp_path, 3, 59, 3)
    write_gemma_scope(tmp_path, 4, 124, 4)
    write_gemma_scope(tmp_path, 4, 125, 4)
    assert SaeSource(config(tmp_path)).load(4).content_hash == SparseAutoencoder(**random_tensors(4)).content_hash
    assert "average_l0_125" in SaeSource(config(tmp_path, l0="paper")).load(4).source
    assert "average_l0_124" in SaeSource(config(tmp_path, l0="124")).load(4).source
    with pytest.raises(UserError, match=r"no average_l0_7.*found average_l0_124, average_l0_125"):
        SaeSource(config(tmp_path, l0="7")).locate([4])
    with pytest.raises(UserError, match=r"no SAE for layer 9.*holds layer_3, layer_4"):
        SaeSource(config(tmp_path)).locate([3, 9])
    with pytest.raises(UserError, match=r"layers \[26\]: the SAEs gemma cover layers 0..25"):
        SaeSource(config(tmp_path)).locate([26])


def test_gemma_scope_only_choice_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_gemma_scope(tmp_path, 4, 12, 4)
    assert "average_l0_12" in SaeSource(config(tmp_path)).load(4).source
    assert "average_l0_124 is not there; using the only one" in caplog.text


def test_gemma_scope_keys_in_any_case_and_scaling_factor(tmp_path: Path) -> None:
    arrays = {n.lower(): t.numpy() for n, t in random_tensors(1).items()}
    removed: dict[str, object] = dict.fromkeys(random_tensors())
    write_gemma_scope(tmp_path, 1, 102, 1, **{**removed, **arrays, "scaling_factor": np.ones(24, np.float32)})
    assert SaeSource(config(tmp_path)).load(1).content_hash == SparseAutoencoder(**random_tensors(1)).content_hash
    write_gemma_scope(tmp_path, 2, 141, 2, scaling_factor=np.full(24, 2.0))
    with pytest.raises(UserError, match="scaling_factor is not all ones"):
        SaeSource(config(tmp_path)).load(2)


def test_hub_offline_is_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"offline mode is on.*sae\.root"):
        SaeSource(config()).locate([4])


def test_choose_l0() -> None:
    assert choose_l0(REPO, "16k", 0, "canonical") == 105
    assert choose_l0(REPO, "16k", 13, "canonical") == 84
    assert choose_l0(REPO, "16k", 13, "paper") == 83
    assert choose_l0(REPO, "16k", 13, "7") == 7
    for arguments, message in [
        ((REPO, "16k", 26, "paper"), "covers layers 0..25"),
        ((REPO, "65k", 3, "paper"), "covers only"),
        ((REPO, "3k", 3, "canonical"), "canonical L0s for widths"),
        (("me/mine", "16k", 3, "canonical"), "no canonical L0 list"),
        ((REPO, "16k", 3, "best"), "must be canonical, paper"),
    ]:
        with pytest.raises(UserError, match=message):
            choose_l0(*arguments)


def test_one_l0_for_all_layers_or_one_for_each() -> None:
    assert [l0_of_layer("71/70", layer, (20, 21)) for layer in (20, 21)] == ["71", "70"]
    assert l0_of_layer("similar", 3, (3, 4)) == "similar"
    with pytest.raises(UserError, match=r"names 2 L0s, but .* are 3 layers"):
        l0_of_layer("71/70", 20, (20, 21, 22))
    names = [SaeSource(config(l0="71/70"), (20, 21)).files(layer)[0] for layer in (20, 21)]
    assert names == [f"layer_{layer}/width_16k/average_l0_{l0}/params.npz" for layer, l0 in ((20, 71), (21, 70))]


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
    source = SaeSource(config(l0_near=75, l0="similar"), span)
    assert source.files(10) == ("layer_10/width_16k/average_l0_77/params.npz",)
    # Alone, layer 10 is as even with any of its L0s.
    assert SaeSource(config(l0="similar")).files(10) == ("layer_10/width_16k/average_l0_77/params.npz",)
    assert SaeSource(config(l0="similar"), span).files(10) == ("layer_10/width_16k/average_l0_21/params.npz",)


def test_with_local_files_the_choice_is_among_them(tmp_path: Path) -> None:
    for layer, l0 in ((3, 59), (3, 20), (4, 124), (4, 61)):
        write_gemma_scope(tmp_path, layer, l0)
    source = SaeSource(config(tmp_path, l0="similar"), (3, 4))
    assert [source.locate([layer])[layer].parent.name for layer in (3, 4)] == ["average_l0_59", "average_l0_61"]


def test_nothing_to_choose_from() -> None:
    with pytest.raises(UserError, match=r"no SAEs to choose from at layers \[1\]"):
        choose_similar({0: [3], 1: []})
    with pytest.raises(UserError, match="only for layers 12"):
        SaeSource(config(width="32k", l0="similar"), (11, 12)).files(12)
