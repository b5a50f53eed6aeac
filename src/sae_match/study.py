"""The resolved experiment of one `sae-match` job: what is compared, on what, how it is measured, where results go."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the commands import this module before they know whether they need torch
    from sae_match.evaluation.settings import Evaluation
    from sae_match.judging.judge import Judging, NoJudge
    from sae_match.language_model.sources import ModelSource
    from sae_match.matching.similarity import Comparison
    from sae_match.matching.solution import Solver
    from sae_match.metrics.metric import Metric
    from sae_match.pairs import Pairs
    from sae_match.saes.folding import Folding
    from sae_match.saes.formats.base import SaeFormat
    from sae_match.text.source import TextSource
    from sae_match.tracking import Tracking


class Rerun(StrEnum):
    """Which jobs the command runs where records of earlier launches are found."""

    failed = "failed"
    all = "all"
    none = "none"


@dataclass
class Layers:
    """The layer span; adjacent pairs (first, first+1) .. (last-1, last) are matched, or consecutive ones of a list."""

    first: int
    """First layer (0-based; the residual stream after this block)."""
    last: int
    """Last layer, inclusive."""
    pair: int | None = None
    """Short for first=pair, last=pair+1, so that a sweep can go over pairs; null once the two are set."""
    list: builtins.list[int] | None = None
    """Layers that are not adjacent, ascending, such as [5,12,19]: consecutive ones are matched; in place of first and
    last, which are then its ends."""


def span_of(layers: Any) -> list[int]:
    """All layers, ascending, of `Layers` or of plain values with the same keys."""
    return list(layers.list or range(layers.first, layers.last + 1))


@dataclass
class Capture:
    """Which residual streams the one pass over the text keeps, for this job and those that share its cache."""

    first: int | None = None
    """First layer to capture; null = the job's own span."""
    last: int | None = None
    """Last layer to capture, inclusive; null = the job's own span."""


@dataclass
class Composition:
    """Composed against exactly solved permutations over growing distance, and features followed over the span."""

    max_distance: int = 0
    """Compare layers up to so far apart beside the neighbors, which the matching itself compares, as far as the span
    reaches; 0 = not at all. Every start and distance is one more assignment problem."""
    starts: list[int] = field(default_factory=list)
    """Layers to start from; empty = every layer of the span."""
    paths: bool = False
    """Write paths.parquet: every feature of the first layer followed through the span's matchings."""


@dataclass
class Paths:
    """Where a job writes and what jobs share."""

    output_dir: str
    """The job's record."""
    cache_dir: str
    """Where jobs share tokens, residual streams, converted models, matchings and losses, in a folder of its own inside
    this one. Empty: SAE_MATCH_CACHE or ~/.cache/sae_match."""


@dataclass(kw_only=True)
class Study:
    """Everything that one `sae-match` job needs, as objects."""

    matching: Comparison
    folding: Folding
    solver: Solver
    sae: SaeFormat
    model: ModelSource
    dataset: TextSource
    pairs: Pairs
    evaluation: Evaluation
    judging: Judging | NoJudge
    tracking: Tracking
    metrics: dict[str, Metric] = field(default_factory=dict)
    """Metrics beside the built-in ones, by any key: +metrics.mine._target_=my_package.MyScore."""
    layers: Layers
    capture: Capture = field(default_factory=Capture)
    composition: Composition = field(default_factory=Composition)
    paths: Paths
    device: str = "auto"
    """auto | cpu | cuda."""
    seed: int = 0
    """Seed of the random control and the bootstrap."""
    progress: bool | None = None
    """Progress bars; null = only when standard error is a terminal."""
    dry_run: bool = False
    """Print what the job would download, need and take, and everything that would stop it; run and write nothing."""
    rerun: Rerun = Rerun.failed
    """failed | all | none: what the command does with jobs that an earlier launch has left in the same sweep directory
    (or paths.output_dir). failed: run what is missing, failed or was killed, skip what is done with the same
    configuration and inputs; all: run everything again, and read no stored matchings, losses or counts; none: run
    nothing, only report."""
    objective: str | None = None
    """Number of metrics.json that the job returns to a sweeper that optimizes, such as Optuna's; null = the matching
    score, which evaluation=full measures."""
    trusted_packages: list[str] = field(default_factory=list)
    """Packages other than sae_match whose classes a `_target_` may name."""

    config: dict[str, Any] = field(default_factory=dict)
    """What the objects were built from, as nested plain values: what a record keeps and what its hashes cover."""

    @property
    def fitted(self) -> list[str]:
        """Names of what is fitted on text that is not evaluated: the matching, controls, splices."""
        own = [f"matching={self.matching.name}"] if self.matching.fitted else []
        own += [f"pairs.map={self.pairs.stream_map}"] if self.pairs.stream_map != "none" else []
        return own + self.evaluation.fitted

    @property
    def unscaled(self) -> bool:
        """Whether nothing is folded and no scale is asked for, so that an SAE without thresholds needs none."""
        asked = (self.folding.name, self.folding.scale, self.evaluation.units(self.folding.name))
        return asked == ("none", "auto", "raw")

    def at(self, output_dir: Path | str) -> Study:
        """The same job with its record elsewhere."""
        config = self.config | {"paths": self.config["paths"] | {"output_dir": str(output_dir)}}
        return replace(self, paths=replace(self.paths, output_dir=str(output_dir)), config=config)
