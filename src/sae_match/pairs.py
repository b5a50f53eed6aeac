"""The pairs of dictionaries that a job compares: neighbors, layers further apart, and two seeds of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING

from sae_match.metrics.description import CEILING, MATCHED
from sae_match.study import span_of

if TYPE_CHECKING:
    from sae_match.study import Study

RANDOM, VANILLA = "random", "vanilla"
COMPOSED, EXACT = "composed", "exact"
"""Of layers further apart: the composition of the matched neighbors, and the matching of the two layers themselves.
`random` is then the composition of the neighbors' random controls (again a uniformly random permutation)."""


class Role(StrEnum):
    """Why two dictionaries are compared."""

    adjacent = "adjacent"
    distant = "distant"
    seeds = "seeds"

    @property
    def variants(self) -> tuple[str, ...]:
        """Permutations that such a pair always has; neighbors have those of their controls, too."""
        return {Role.adjacent: (MATCHED,), Role.distant: (COMPOSED, EXACT, RANDOM), Role.seeds: (CEILING,)}[self]

    @property
    def judged(self) -> tuple[str, ...]:
        """Permutations whose pairs of features are judged."""
        return {Role.adjacent: (MATCHED, RANDOM, VANILLA), Role.distant: self.variants, Role.seeds: ()}[self]


@dataclass(frozen=True, order=True)
class Site:
    """One dictionary of the job: the SAE of a layer, or its second seed."""

    layer: int
    second: bool = False


@dataclass(frozen=True)
class Pair:
    """Two dictionaries, and why they are compared."""

    a: Site
    b: Site
    role: Role

    @property
    def layers(self) -> tuple[int, int]:
        """Layer of either side; one and the same of two seeds."""
        return self.a.layer, self.b.layer

    def __str__(self) -> str:
        return f"layers {self.a.layer} -> {self.b.layer}"


def span(study: Study) -> list[int]:
    """Layers of the job, ascending."""
    return span_of(study.layers)


def adjacent_pairs(study: Study) -> list[Pair]:
    """Every layer of the span but the last, and the next one: (t, t+1) unless layers are listed."""
    return [Pair(Site(layer), Site(layer_to), Role.adjacent) for layer, layer_to in pairwise(span(study))]


def distant_pairs(study: Study) -> list[Pair]:
    """Pairs further apart than neighbors that `composition` compares, by start, then distance; usually none."""
    layers, reach = span(study), study.composition.max_distance
    return [
        Pair(Site(start), Site(layer), Role.distant)
        for start in sorted(study.composition.starts or layers)
        for layer in layers[layers.index(start) + 2 :]
        if layer - start <= reach
    ]


def seed_pair(layer: int) -> Pair:
    """The SAE of a layer and its second seed."""
    return Pair(Site(layer), Site(layer, second=True), Role.seeds)


def captured_layers(study: Study) -> list[int]:
    """Layers whose residual streams the pass over the text keeps: the span, or the wider one that jobs share."""
    if study.capture.first is None and study.capture.last is None:
        return span(study)
    first = study.layers.first if study.capture.first is None else study.capture.first
    last = study.layers.last if study.capture.last is None else study.capture.last
    return list(range(first, last + 1))
