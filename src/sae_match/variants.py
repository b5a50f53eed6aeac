"""How variants are called and drawn: permutations of a layer pair, and what stands in for a residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from pydantic import Field

from sae_match.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION

Mark = Annotated[str, Field(max_length=8)]


class Look(NamedTuple):
    """How one curve is drawn, and its entry in the legend."""

    color: Annotated[str, Field(pattern=r"^(#[0-9A-Fa-f]{6}|[a-z]{1,20}|C\d)$")]
    marker: Mark
    linestyle: Mark
    label: Annotated[str, Field(max_length=200)]


VARIANTS: Mapping[str, Look] = {
    "matched": Look(BLUE, "o", "-", "matched"),
    "vanilla": Look(VERMILION, "s", "-", "vanilla (identity)"),
    "random": Look(ORANGE, "v", "-", "random"),
    "ceiling": Look(BLACK, "D", "--", "two seeds of one layer"),
    "encode_permute_decode": Look(BLUE, "o", "-", "encode-permute-decode (matched)"),
    "encode_decode_previous": Look(GREEN, "^", "-", "encode-decode previous"),
    "encode_decode_current": Look(BLACK, "D", "--", "encode-decode current (SAE's own error)"),
    "layer_drop": Look(PURPLE, "s", "-", "layer drop"),
}
"""Known variants in drawing order. Solid: what competes; dashed: what bounds it. The rest get what is left."""
