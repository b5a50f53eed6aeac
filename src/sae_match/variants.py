"""How variants are called and drawn: permutations of a layer pair, and what stands in for a residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#7F7F7F"


Color = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")]
Marker = Literal["o", "s", "^", "D", "v", "P", "X"]
Dashes = Literal["-", "--", ":", "-."]


class Style(NamedTuple):
    """How one curve is drawn, and its entry in the legend."""

    color: Color
    marker: Marker
    linestyle: Dashes
    label: Annotated[str, Field(max_length=200)]


VARIANTS: Mapping[str, Style] = {
    "matched": Style(BLUE, "o", "-", "matched"),
    "vanilla": Style(VERMILION, "s", "-", "vanilla (identity)"),
    "random": Style(ORANGE, "v", "-", "random"),
    "ceiling": Style(BLACK, "D", "--", "two seeds of one layer"),
    "encode_permute_decode": Style(BLUE, "o", "-", "encode-permute-decode (matched)"),
    "encode_decode_previous": Style(GREEN, "^", "-", "encode-decode previous"),
    "encode_decode_current": Style(BLACK, "D", "--", "encode-decode current (SAE's own error)"),
    "layer_drop": Style(PURPLE, "s", "-", "layer drop"),
}
"""Known variants in drawing order. Solid: what competes; dashed: what bounds it. The rest get what is left."""
