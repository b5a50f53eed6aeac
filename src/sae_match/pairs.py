"""The pairs of dictionaries that a job compares, and the configuration's group `pairs`, which says which they are.

Neighboring layers of one model; or the SAEs of the job and those of another source (other seeds, another sparsity or
width, a tuned model, another model); or one training run over time. Each source of SAEs is a *side* of the job: the
study with that side's SAEs, model and layers in place of its own, so that all that reads a study reads a side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field

from sae_match.evaluation.linear_map import LinearMapSplice
from sae_match.evaluation.standard_splices import EncodeDecodeCurrent, LayerDrop
from sae_match.evaluation.stream_map import MapKind, StreamMapSplice
from sae_match.language_model.sources import ModelSource
from sae_match.metrics.description import CEILING, MATCHED
from sae_match.options import option
from sae_match.saes import SaeFormat, SaeSource
from sae_match.study import Capture, Layers, span_of

if TYPE_CHECKING:
    from sae_match.evaluation.splices import Splice
    from sae_match.study import Study

T = TypeVar("T")
RANDOM, VANILLA = "random", "vanilla"
COMPOSED, EXACT = "composed", "exact"
"""Of layers further apart: the composition of the matched neighbors, and the matching of the two layers themselves.
`random` is then the composition of the neighbors' random controls (again a uniformly random permutation)."""


class Role(StrEnum):
    """Why two dictionaries are compared."""

    adjacent = "adjacent"
    distant = "distant"
    seeds = "seeds"
    sources = "sources"

    @property
    def variants(self) -> tuple[str, ...]:
        """Permutations that such a pair always has; the job's own pairs have those of their controls, too."""
        return {Role.distant: (COMPOSED, EXACT, RANDOM), Role.seeds: (CEILING,)}.get(self, (MATCHED,))

    @property
    def judged(self) -> tuple[str, ...]:
        """Permutations whose pairs of features are judged."""
        return {Role.distant: self.variants, Role.seeds: ()}.get(self, (MATCHED, RANDOM, VANILLA))

    @property
    def own(self) -> bool:
        """Whether such a pair is what the job is about: matched by every matcher, with every splice."""
        return self in (Role.adjacent, Role.sources)


@dataclass(frozen=True, order=True)
class Site:
    """One dictionary of the job.

    Attributes:
        layer: its place in the rows of the record: its layer, or the step of a training run.
        source: the side that it belongs to; where neighbors are compared, 1 is the second seed.
        block: its layer where that is not its place.
    """

    layer: int
    source: int = 0
    block: int | None = None

    @property
    def at(self) -> int:
        """Its layer: the residual stream after this block."""
        return self.layer if self.block is None else self.block

    @property
    def suffix(self) -> str:
        """What the variants of its own rows end with, where another side has rows at the same place."""
        return "_b" if self.source and self.block is None else ""


@dataclass(frozen=True)
class Pair:
    """Two dictionaries, and why they are compared."""

    a: Site
    b: Site
    role: Role

    @property
    def layers(self) -> tuple[int, int]:
        """Place of either side in the record: its layer, or its step."""
        return self.a.layer, self.b.layer

    @property
    def blocks(self) -> tuple[int, int]:
        """Layer of either side."""
        return self.a.at, self.b.at

    def __str__(self) -> str:
        return f"{'layers' if self.a.block is None else 'steps'} {self.a.layer} -> {self.b.layer}"


def span(study: Study) -> list[int]:
    """Layers of the job, ascending."""
    return span_of(study.layers)


@option
class Pairs(ABC):
    """Which two dictionaries are compared."""

    name: str
    """Short name used in records."""

    @property
    def stream_map(self) -> MapKind:
        """How the first side's residual stream is carried to the second's before weights are compared."""
        return MapKind.none

    @property
    def one_to_few(self) -> bool:
        """Whether the features of the second SAE that belong to each of the first are found."""
        return False

    @abstractmethod
    def sides(self, study: Study) -> tuple[Study, ...]:
        """The study as each source of SAEs sees it: with its SAEs, model and layers; of the first the job's own."""

    @abstractmethod
    def pairs(self, study: Study) -> list[Pair]:
        """The job's own pairs, in the order in which they are matched."""

    def sites(self, study: Study) -> list[Site]:
        """Every dictionary of the job's own pairs, once."""
        return list(dict.fromkeys(site for pair in self.pairs(study) for site in (pair.a, pair.b)))

    def splices(self, study: Study) -> tuple[Splice, ...]:
        """What stands in for the second residual stream of a pair."""
        return study.evaluation.all_splices

    def notes(self, study: Study) -> Iterator[str]:
        """What a reader of the record must know."""
        return iter(())

    def problems(self, study: Study) -> Iterator[str]:
        """What is wrong with these pairs in this job, one sentence each."""
        if study.composition.max_distance or study.composition.paths:
            yield f"composition follows neighboring layers, and pairs={self.name} has none; leave it out"
        if study.evaluation.flow_alpha is not None:
            yield f"evaluation.flow_alpha follows neighboring layers, and pairs={self.name} has none; leave it out"
        if study.evaluation.steering is not None:
            yield f"evaluation.steering follows neighboring layers, and pairs={self.name} has none; leave it out"
        if study.judging.enabled and study.judging.neuronpedia is not None:
            yield f"judging.neuronpedia explains the SAEs of one source; with pairs={self.name} let it be null"
        if study.evaluation.functional is not None and len({side.model.origin for side in self.sides(study)}) > 1:
            yield "evaluation.functional follows a feature through one model, and these pairs are of two; leave it out"


@option
class Adjacent(Pairs):
    """Neighboring layers of one model: (t, t+1), or consecutive ones of `layers.list`."""

    name: str = "adjacent"

    def sides(self, study: Study) -> tuple[Study, ...]:
        return (study,)

    def pairs(self, study: Study) -> list[Pair]:
        return [Pair(Site(layer), Site(layer_to), Role.adjacent) for layer, layer_to in pairwise(span(study))]

    def sites(self, study: Study) -> list[Site]:
        return [Site(layer) for layer in span(study)]

    def problems(self, study: Study) -> Iterator[str]:
        return iter(())


@option
class OtherSource(Pairs):
    """Each SAE of the job against the one of the same place in another source: other seeds, another sparsity or width
    of the same model, or the SAEs of another model."""

    sae: SaeFormat
    """The other SAEs: an option file of group `sae`, chosen with sae@pairs.sae=NAME."""
    model: ModelSource | None = None
    """The model that they belong to: an option file of group `model`, chosen with model@pairs.model=NAME; null = the
    job's own. It reads the same text; of different tokenizers those positions are compared at which both have read the
    same characters, and token losses are left out."""
    layers: dict[int, int] | None = None
    """From a layer of the job to the layer of the other SAEs that it is compared with; null = the same number."""
    map: MapKind = MapKind.none
    """How the first model's residual stream is carried to the second's before weights are compared, fitted on documents
    that are not evaluated: none (they are one space) | orthogonal (Procrustes, with a scale) | affine."""
    children: bool = False
    """Write children.parquet: for each feature of the job's SAE the features of the other (wider) one whose nearest it
    is, above what a rotated SAE reaches (evaluation.null_alpha)."""

    @property
    def stream_map(self) -> MapKind:
        return self.map

    @property
    def one_to_few(self) -> bool:
        return self.children

    def other(self, layer: int) -> int:
        """The layer that one of the job's is compared with."""
        return (self.layers or {}).get(layer, layer)

    def sides(self, study: Study) -> tuple[Study, ...]:
        found = sorted({self.other(layer) for layer in span(study)}) or [study.layers.first]  # a span that is refused
        layers = Layers(first=found[0], last=found[-1], list=found)
        return study, replace(study, sae=self.sae, model=self.model or study.model, layers=layers, capture=Capture())

    def pairs(self, study: Study) -> list[Pair]:
        return [Pair(Site(layer), Site(self.other(layer), source=1), Role.sources) for layer in span(study)]

    def splices(self, study: Study) -> tuple[Splice, ...]:
        """Of one residual stream those that change it; of two spaces maps between them and B's own error: what is
        decoded in A's space has no place in B's model."""
        found = super().splices(study)
        if self.map is not MapKind.none:
            kept = (one for one in found if isinstance(one, (EncodeDecodeCurrent, LinearMapSplice)))
            return *kept, StreamMapSplice(kind=self.map)
        same = self.model is None and not self.layers
        return tuple(one for one in found if not (same and isinstance(one, LayerDrop)))

    def notes(self, study: Study) -> Iterator[str]:
        if self.map is not MapKind.none and study.evaluation.full:
            models = " and ".join(side.model.name for side in self.sides(study))
            kept = self.splices(study)
            out = ", ".join(one.name for one in study.evaluation.all_splices if one not in kept)
            yield (
                f"splices left out: {out}. The residual streams of {models} are two spaces, and what is decoded in one "
                "has no place in the other"
            )

    def problems(self, study: Study) -> Iterator[str]:
        yield from super().problems(study)
        if unknown := sorted(set(self.layers or ()) - set(span(study))):
            yield f"pairs.layers: {', '.join(map(str, unknown))} are not in layers.first..last of the job"
        if self.map is not MapKind.none and self.model is None:
            yield f"pairs.map={self.map}: both SAEs read the residual stream of one model; set it to none"


@option
class Checkpoints(Pairs):
    """One layer over a training run: the SAEs of each step against those of the next one.

    `{step}` in any text of the groups `sae` and `model` (filename, folder, revision, path) is filled in. In the record
    `layer` and `layer_to` are steps.
    """

    name: str = "checkpoints"
    steps: Annotated[list[int], Field(min_length=2)]
    """Steps of the training run, ascending."""

    def sides(self, study: Study) -> tuple[Study, ...]:
        return tuple(
            replace(study, sae=at_step(study.sae, step), model=at_step(study.model, step)) for step in self.steps
        )

    def pairs(self, study: Study) -> list[Pair]:
        block = study.layers.first
        sites = [Site(step, source, block) for source, step in enumerate(self.steps)]
        return [Pair(a, b, Role.sources) for a, b in pairwise(sites)]

    def problems(self, study: Study) -> Iterator[str]:
        yield from super().problems(study)
        if self.steps != sorted(set(self.steps)):
            yield f"pairs.steps={self.steps}: must be ascending, each step once"
        if len(span(study)) > 1:
            yield f"pairs=checkpoints follows one layer: set layers.last={study.layers.first} (layers.first)"
        if at_step(study.sae, 0) is study.sae:
            yield "pairs=checkpoints: write {step} into sae.filename, sae.folder or sae.revision"


def at_step(chosen: T, step: int) -> T:
    """An option with `{step}` in its texts filled in; itself where there is none."""
    given: Any = chosen
    texts = {field.name: getattr(chosen, field.name) for field in fields(given)}
    filled = {
        name: text.replace("{step}", str(step))
        for name, text in texts.items()
        if isinstance(text, str) and "{step}" in text
    }
    return replace(given, **filled) if filled else chosen


@dataclass(frozen=True)
class JobPairs:
    """What a job compares, as its study resolves to it.

    Attributes:
        sides: the study as each source of SAEs sees it (`Pairs.sides`).
        sources: where the SAEs of every `Site.source` come from; of neighbors the second ones are the second seeds.
        sites: every dictionary of the job's own pairs, once.
        own: the pairs that the job is about, in the order in which they are matched.
        distant: pairs further apart than neighbors that `composition` compares, by start, then distance; usually none.
        seeds: the SAE of a layer and its second seed, where neighbors are compared and there is one.
    """

    sides: tuple[Study, ...] = ()
    sources: tuple[SaeSource, ...] = ()
    sites: tuple[Site, ...] = ()
    own: tuple[Pair, ...] = ()
    distant: tuple[Pair, ...] = ()
    seeds: tuple[Pair, ...] = ()


def job_pairs(study: Study) -> JobPairs:
    """What a study that keeps the rules (`rules.check_config`) compares.

    Raises:
        UserError: a file name of second seeds that leads out of `sae.root`.
    """
    sides, own, sites = study.pairs.sides(study), tuple(study.pairs.pairs(study)), tuple(study.pairs.sites(study))
    sources = tuple(SaeSource(side.sae, tuple(span(side))) for side in sides)
    seeds: tuple[Pair, ...] = ()
    if len(sources) == 1:
        second = replace(sources[0], second=True)
        found = [site for site in sites if second.has(site.at)]
        sources, seeds = (*sources, second), tuple(Pair(a, replace(a, source=1), Role.seeds) for a in found)
    return JobPairs(sides, sources, sites, own, tuple(_distant_pairs(study)), seeds)


def _distant_pairs(study: Study) -> list[Pair]:
    layers, reach = span(study), study.composition.max_distance
    return [
        Pair(Site(start), Site(layer), Role.distant)
        for start in sorted(study.composition.starts or layers)
        for layer in layers[layers.index(start) + 2 :]
        if layer - start <= reach
    ]


def captured_layers(study: Study) -> list[int]:
    """Layers whose residual streams the pass over the text keeps: the span, or the wider one that jobs share."""
    if study.capture.first is None and study.capture.last is None:
        return span(study)
    first = study.layers.first if study.capture.first is None else study.capture.first
    last = study.layers.last if study.capture.last is None else study.capture.last
    return list(range(first, last + 1))
