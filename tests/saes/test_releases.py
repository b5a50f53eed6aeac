"""Every SAE of SAELens' registry by name: the table against the installed registry, names, and what can be run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sae_match import UserError
from sae_match.saes import Site
from sae_match.saes.formats.release import CONVERTERS, Release
from sae_match.saes.releases import release_named, release_names
from tests.saes import release_table


def named(release: str, id: str, root: Path | None = None, **fields: Any) -> Release:
    place = None if root is None else str(root)
    return Release(name="test", release=release, id=id, root=place, last_layer=1000, **fields)


def test_the_table_is_that_of_the_installed_saelens() -> None:
    """Where this fails after an update of sae-lens, `python -m tests.saes.release_table` makes it again."""
    registry = release_table.registry()
    assert release_names() == sorted(registry)
    for name, entry in registry.items():
        ours = {sae.id: sae for sae in release_named(name).saes.values()}
        assert {id: sae.path for id, sae in ours.items()} == {s["id"]: str(s["path"]) for s in entry["saes"]}
        assert release_named(name).repo_id == entry["repo_id"]
        converter = release_named(name).converter
        assert converter == (entry["conversion_func"] or "sae_lens")
        for sae in entry["saes"]:
            if "norm_scaling_factor" in sae and converter != "llama_scope":
                assert ours[sae["id"]].scale == sae["norm_scaling_factor"]
            assert ("embedding" in str(sae["path"])) == (ours[sae["id"]].site is Site.embedding)


RUNS = {
    ("span", "activations"): 42,
    ("span", "weights only"): 59,
    ("list", "activations"): 30,
    ("list", "weights only"): 28,
    ("one layer", "activations"): 8,
    ("one layer", "weights only"): 3,
}
"""How many releases a command runs over neighboring layers, over `layers.list`, or which are of one layer only (several
of one layer are compared in the library), and whether they encode residual streams, as far as the registry says."""


def how(name: str) -> tuple[str, str]:
    """How the best of a release's ids can be used: over neighboring layers, over a list of layers, or as single SAEs;
    and whether such an SAE encodes residual streams."""
    published = release_named(name)
    by_id: dict[str, list[int]] = {}
    for sae in published.saes.values():
        by_id.setdefault(pattern(sae.id, sae.block, sae.l0), []).append(sae.layer or 0)
    spans = [len({*layers} & {layer + 1 for layer in layers}) > 0 for layers in by_id.values()]
    several = any(len({*layers}) > 1 for layers in by_id.values())
    reads = {sae.site for sae in published.saes.values()} & {Site.resid_post, Site.resid_pre}
    plain = published.converter not in ("temporal",) and not published.settings.keys() - {"k"}
    layers = "span" if any(spans) else "list" if several else "one layer"
    return layers, "activations" if reads and plain else "weights only"


def pattern(id: str, block: int | None, l0: int | None) -> str:
    return release_table.pattern(id, block, None if l0 is None else str(l0))


def test_every_release_is_addressable_and_what_it_can_be_used_for() -> None:
    counted = Counter(how(name) for name in release_names())
    assert sum(counted.values()) == 170
    assert dict(counted) == RUNS


def test_every_sae_resolves_to_files() -> None:
    for name in release_names():
        published = release_named(name)
        assert published.converter in CONVERTERS
        for id in published.patterns():
            if "{layer}" not in id:
                continue
            saes = named(name, id, l0=70 if "{l0}" in id else None)
            assert saes.repo_id == published.repo_id
            for layer in saes.covered():
                files = saes.files(layer, (layer,))
                assert all("{" not in file for file in files) and len(set(files)) == len(files)
        for sae in published.saes.values():
            if sae.block is None:
                assert named(name, sae.id).files(None) == (f"{sae.path}/params.npz",)


@pytest.mark.parametrize(
    ("release", "id", "fields", "message"),
    [
        ("gemma-scope-2b-res", "x", {}, "no such release.*nearest: gemma-scope-2b-pt-res"),
        ("qwen-scope-3-8b-base-w64k-l50", "layer_3", {}, "no such SAE; nearest: layer3"),
        ("qwen-scope-3-8b-base-w64k-l50", "layer_{layer}", {}, r"its ids: layer\{layer\}"),
        ("qwen-scope-3-8b-base-w64k-l50", "layer{layer}", {"l0": 50}, r"sae\.id has no \{l0\}"),
    ],
)
def test_unknown_names(release: str, id: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        named(release, id, **fields)


def test_layers_that_a_release_has() -> None:
    bench = named("sae_bench_gemma-2-2b_topk_width-2pow12_date-1109", "blocks.{layer}.hook_resid_post__trainer_0")
    assert (list(bench.covered()), bench.first_layer, bench.last_layer) == ([5, 12, 19], 5, 19)
    bench.check_layers((5, 19))
    with pytest.raises(UserError, match=r"no SAE of layers 6, 7; there are 'layers.list=\[5, 12, 19\]'"):
        bench.check_layers((5, 6, 7))
    with pytest.raises(UserError, match=r"there are layers\.first=0 layers\.last=25"):
        named("gemma-scope-2b-pt-mlp-canonical", "layer_{layer}/width_16k/canonical").check_layers((25, 26))
    one = named("gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_59")
    assert list(one.covered()) == [3]
    with pytest.raises(UserError, match="is of block 3, and layer 4 was asked for"):
        one.files(4)


def test_one_line_for_layers_whose_l0s_differ() -> None:
    span = (3, 4, 5)
    # Layer 3 has 14 28 59 142 315, layer 4 17 31 60 124 125 281, layer 5 18 34 68 143 309.
    for l0, expected in ((70, (59, 60, 68)), (16, (14, 17, 18))):
        saes = named("gemma-scope-2b-pt-res", "layer_{layer}/width_16k/average_l0_{l0}", l0=l0)
        assert [saes.files(at, span)[0].split("_")[-1] for at in span] == [f"{n}/params.npz" for n in expected]
    with pytest.raises(UserError, match=r"layer 3 has the L0s 14, 28, 59, 142, 315; say near which with sae\.l0=N"):
        named("gemma-scope-2b-pt-res", "layer_{layer}/width_16k/average_l0_{l0}").files(3)
    canonical = named("gemma-scope-2b-pt-res-canonical", "layer_{layer}/width_16k/canonical")
    assert [canonical.files(at)[0].split("/")[2] for at in span] == [f"average_l0_{n}" for n in (59, 124, 68)]
    transcoders = named("gemma-scope-2b-pt-transcoders", "layer_{layer}/width_16k/average_l0_{l0}")
    assert transcoders.files(0) == ("layer_0/width_16k/average_l0_76/params.npz",)
