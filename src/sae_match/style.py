"""How the curve of one variant is drawn; each variant owns its own."""

from __future__ import annotations

from typing import NamedTuple

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"
"""Okabe and Ito (2008), legible with any color vision."""


class Style(NamedTuple):
    """Color, marker and line of a curve, as matplotlib names them."""

    color: str
    marker: str = "o"
    linestyle: str = "-"
