"""How variants are called and drawn: permutations of a layer pair, and what stands in for a residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from pydantic import Field

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"
"""Okabe and Ito (2008), legible with any color vision."""


class Style(NamedTuple):
    """Color, marker and line of a curve, as matplotlib names them."""

    color: str
    marker: str = "o"
    linestyle: str = "-"


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
    "encode_permute_decode": Look(BLUE, "o", "-", "encode-permute-decode (matched)"),
    "encode_decode_previous": Look(GREEN, "^", "-", "encode-decode previous"),
    "encode_decode_current": Look(BLACK, "D", "--", "encode-decode current (SAE's own error)"),
    "layer_drop": Look(PURPLE, "s", "-", "layer drop"),
    "ceiling": Look(BLACK, "*", "none", "two seeds of the layer (reference)"),
}
"""Known variants in drawing order. Solid: what competes; dashed: what bounds it; no line: what is known of single
layers. The rest get what is left. Two seeds (`ceiling`) are a reference and no bound: of some metrics the matching of
neighbors has more."""
