"""Dataclass schema of the `sae-match` configuration: one class per Hydra group.

Nothing here imports torch: composing and checking a configuration must stay fast and side-effect free.
Field docstrings are the reference that `sae-match --help` points to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from sae_match.config.composition_schema import CompositionConfig

if TYPE_CHECKING:  # only `Schema` is ever resolved; composing must not wait for torch
    from sae_match.evaluation.settings import Evaluation
    from sae_match.judging.judge import Judging
    from sae_match.language_model.sources import ModelSource
    from sae_match.matching.similarity import Similarity
    from sae_match.matching.solution import Solver
    from sae_match.metrics.metric import Metric
    from sae_match.saes.folding import Folding
    from sae_match.saes.formats import SaeFormat
    from sae_match.text.source import TextSource
    from sae_match.tracking import Tracking


class Rerun(StrEnum):
    """Which jobs the command runs where records of earlier launches are found."""

    failed = "failed"
    all = "all"
    none = "none"


@dataclass
class LayersConfig:
    """The layer span; adjacent pairs (first, first+1) .. (last-1, last) are matched."""

    first: int = MISSING
    """First layer (0-based; the residual stream after this block)."""
    last: int = MISSING
    """Last layer, inclusive."""
    pair: int | None = None
    """Short for first=pair, last=pair+1, so that a sweep can go over pairs; null once the two are set."""


@dataclass
class CaptureConfig:
    """Which residual streams the one pass over the text keeps, for this job and those that share its cache."""

    first: int | None = None
    """First layer to capture; null = the job's own span."""
    last: int | None = None
    """Last layer to capture, inclusive; null = the job's own span."""


@dataclass
class PathsConfig:
    """Where a job writes and what jobs share."""

    output_dir: str = MISSING
    """The job's record."""
    cache_dir: str = MISSING
    """Where jobs share tokens, residual streams, converted models, matchings and losses, in a folder of its own inside
    this one. Empty: SAE_MATCH_CACHE or ~/.cache/sae_match."""


@dataclass
class Config:
    """The whole configuration of one `sae-match` job."""

    matching: Similarity = MISSING
    folding: Folding = MISSING
    solver: Solver = MISSING
    sae: SaeFormat = MISSING
    model: ModelSource = MISSING
    dataset: TextSource = MISSING
    evaluation: Evaluation = MISSING
    judging: Judging = MISSING
    tracking: Tracking = MISSING
    metrics: dict[str, Metric] = field(default_factory=dict)
    """Metrics beside the built-in ones, by any key: +metrics.mine._target_=my_package.MyScore."""
    layers: LayersConfig = field(default_factory=LayersConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    composition: CompositionConfig = field(default_factory=CompositionConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
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
    trusted_packages: list[str] = field(default_factory=list)
    """Packages other than sae_match whose classes a `_target_` may name."""

    config: dict[str, Any] = field(default_factory=dict)
    """What the objects were built from, as nested plain values: what a record keeps and what its hashes cover."""

    @property
    def fitted(self) -> list[str]:
        """Names of what is fitted on text that is not evaluated: the matching, controls, splices."""
        own = [f"matching={self.matching.name}"] if self.matching.fitted else []
        return own + self.evaluation.fitted

    def at(self, output_dir: Path | str) -> Config:
        """The same job with its record elsewhere."""
        config = self.config | {"paths": self.config["paths"] | {"output_dir": str(output_dir)}}
        return replace(self, paths=replace(self.paths, output_dir=str(output_dir)), config=config)


@dataclass
class Schema:
    """The composed form of `Config`; what is `Any` is built from its `_target_`."""

    matching: Any = MISSING
    folding: Any = MISSING
    solver: Any = MISSING
    sae: Any = MISSING
    model: Any = MISSING
    dataset: Any = MISSING
    evaluation: Any = MISSING
    judging: Any = MISSING
    tracking: Any = MISSING
    metrics: dict[str, Any] = field(default_factory=dict)
    layers: LayersConfig = field(default_factory=LayersConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    composition: CompositionConfig = field(default_factory=CompositionConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    device: str = "auto"
    seed: int = 0
    progress: bool | None = None
    dry_run: bool = False
    rerun: Rerun = Rerun.failed
    trusted_packages: list[str] = field(default_factory=list)
