"""Names, units, colours and markers: a variant or a metric looks the same in every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#7F7F7F"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Okabe and Ito (2008), legible with any colour vision; yellow is left out, too pale on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":")


class Style(NamedTuple):
    """How one curve is drawn."""

    color: str
    marker: str
    linestyle: str
    label: str


class Quantity(NamedTuple):
    """What a metric is called on an axis and in a table."""

    title: str
    unit: str = ""
    log: bool = False

    @property
    def axis(self) -> str:
        """Axis label with the unit in brackets."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title


VARIANTS: dict[str, Style] = {
    "matched": Style(BLUE, "o", "-", "matched"),
    "vanilla": Style(VERMILION, "s", "-", "vanilla (identity)"),
    "random": Style(ORANGE, "v", "-", "random"),
    "ceiling": Style(BLACK, "D", "--", "two seeds of one layer"),
    "encode_permute_decode": Style(BLUE, "o", "-", "encode-permute-decode (matched)"),
    "encode_decode_previous": Style(GREEN, "^", "-", "encode-decode previous"),
    "encode_decode_current": Style(BLACK, "D", "--", "encode-decode current (SAE's own error)"),
    "layer_drop": Style(PURPLE, "s", "-", "layer drop"),
}
"""Known variants in drawing order. Solid: what competes; dashed: what bounds it."""

QUANTITIES: dict[str, Quantity] = {
    "matching_score": Quantity("matching score", "probability"),
    "matching_score_per_feature": Quantity("matching score per feature", "mean over features"),
    "matching_iou": Quantity("co-activation IoU"),
    "explained_variance": Quantity("explained variance"),
    "r2": Quantity("$R^2$"),
    "fvu": Quantity("unexplained variance (FVU)"),
    "delta_loss": Quantity("$\\Delta$ loss", "nats/token"),
    "agreement": Quantity("agreement with exact", "share of features"),
    "l0": Quantity("$L_0$", "active features/token"),
    "weight_mse/W_dec": Quantity("MSE of decoder rows", "folded units²", log=True),
    "weight_mse/W_enc": Quantity("MSE of encoder columns", "folded units²", log=True),
    "weight_mse/b_enc": Quantity("MSE of encoder biases", "folded units²", log=True),
    "judge/same": Quantity("pairs judged the same", "share"),
    "judge/score": Quantity("judge's score", "1 different to 3 same"),
    "mean_theta": Quantity("mean threshold $\\theta$"),
    "decoder_norm": Quantity("mean folded decoder norm"),
    "residual_norm": Quantity("median residual norm"),
}


def quantity(metric: str) -> Quantity:
    """Title and unit of a metric; an unknown one is called by its name."""
    return QUANTITIES.get(metric, Quantity(metric))


def references(variants: Sequence[str]) -> dict[str, Style]:
    """The variants' styles in grey with thin dashes: what stands behind the curves that a figure is about."""
    return {name: look._replace(color=GREY, linestyle=":") for name, look in styles(variants).items()}


def factor_styles(settings: Mapping[str, Sequence[str]]) -> dict[str, Style]:
    """A style per label: one colour each if the palette has enough, otherwise the colour tells the level of the setting
    with the most levels that the palette can show, and marker and dashes the rest.

    Args:
        settings: label -> values of the settings that vary, as many for every label.
    """
    if len(settings) <= len(PALETTE):
        return styles(list(settings))
    columns = list(zip(*settings.values(), strict=True))
    levels = [list(dict.fromkeys(column)) for column in columns]
    fitting = [place for place, found in enumerate(levels) if 1 < len(found) <= len(PALETTE)]
    if not fitting:
        return styles(list(settings))
    place = max(fitting, key=lambda index: len(levels[index]))
    rests = list(dict.fromkeys(_without(values, place) for values in settings.values()))
    looks: dict[str, Style] = {}
    for label, values in settings.items():
        rest = rests.index(_without(values, place))
        marker, dashes = MARKERS[rest % len(MARKERS)], DASHES[rest % len(DASHES)]
        looks[label] = Style(PALETTE[levels[place].index(values[place])], marker, dashes, label)
    return looks


def _without(values: Sequence[str], place: int) -> tuple[str, ...]:
    return (*values[:place], *values[place + 1 :])


def styles(variants: Sequence[str]) -> dict[str, Style]:
    """A style per variant, known ones first in their fixed order. Unknown ones, in the order given, take
    colours that no known one has, then other dash patterns of every colour."""
    known = {name: VARIANTS[name] for name in VARIANTS if name in variants}
    unknown = [name for name in dict.fromkeys(variants) if name not in VARIANTS]
    colours = {style.color for style in known.values()}
    pairs = list(zip(PALETTE, MARKERS, strict=True))
    looks = [(*pair, DASHES[0]) for pair in pairs if pair[0] not in colours]
    looks += [(*pair, dashes) for dashes in DASHES[1:] for pair in pairs]
    taken = {style[:3] for style in known.values()}
    free = [look for look in looks if look not in taken]
    for index, name in enumerate(unknown):
        known[name] = Style(*free[index % len(free)], label=name.replace("_", " "))
    return known
