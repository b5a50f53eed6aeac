"""Colours and markers: a variant looks the same in every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from ..variants import VARIANTS, Look

PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Okabe and Ito (2008), legible with any colour vision; yellow is left out, too pale on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":")


def references(variants: Sequence[str], known: Mapping[str, Look] = VARIANTS) -> dict[str, Look]:
    """The variants' styles in grey with thin dashes: what stands behind the curves that a figure is about."""
    return {name: look._replace(color=GREY, linestyle=":") for name, look in styles(variants, known).items()}


def factor_styles(settings: Mapping[str, Sequence[str]]) -> dict[str, Look]:
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
    looks: dict[str, Look] = {}
    for label, values in settings.items():
        rest = rests.index(_without(values, place))
        marker, dashes = MARKERS[rest % len(MARKERS)], DASHES[rest % len(DASHES)]
        looks[label] = Look(PALETTE[levels[place].index(values[place])], marker, dashes, label)
    return looks


def _without(values: Sequence[str], place: int) -> tuple[str, ...]:
    return (*values[:place], *values[place + 1 :])


def styles(variants: Sequence[str], known: Mapping[str, Look] = VARIANTS) -> dict[str, Look]:
    """A style per variant, known ones first in their fixed order. Unknown ones, in the order given, take
    colours that no known one has, then other dash patterns of every colour."""
    found = {name: known[name] for name in known if name in variants}
    unknown = [name for name in dict.fromkeys(variants) if name not in known]
    colours = {style.color for style in found.values()}
    pairs = list(zip(PALETTE, MARKERS, strict=True))
    looks = [(*pair, DASHES[0]) for pair in pairs if pair[0] not in colours]
    looks += [(*pair, dashes) for dashes in DASHES[1:] for pair in pairs]
    taken = {style[:3] for style in found.values()}
    free = [look for look in looks if look not in taken]
    for index, name in enumerate(unknown):
        found[name] = Look(*free[index % len(free)], label=name.replace("_", " "))
    return found
