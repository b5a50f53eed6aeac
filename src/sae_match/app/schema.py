"""What Hydra composes: plain values of the job itself; a group that is `Any` is built from its `_target_`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from sae_match.study import Capture, Composition, Layers, Paths, Rerun
from sae_match.training.options import TrainingConfig


@dataclass
class Schema:
    """The composed form of `Study`; what is `Any` is built from its `_target_`."""

    matching: Any = MISSING
    folding: Any = MISSING
    solver: Any = MISSING
    sae: Any = MISSING
    model: Any = MISSING
    dataset: Any = MISSING
    pairs: Any = MISSING
    evaluation: Any = MISSING
    judging: Any = MISSING
    tracking: Any = MISSING
    metrics: dict[str, Any] = field(default_factory=dict)
    layers: Layers = MISSING
    capture: Capture = field(default_factory=Capture)
    composition: Composition = field(default_factory=Composition)
    paths: Paths = MISSING
    device: str = "auto"
    seed: int = 0
    progress: bool | None = None
    dry_run: bool = False
    rerun: Rerun = Rerun.failed
    objective: str | None = None
    trusted_packages: list[str] = field(default_factory=list)


@dataclass
class TrainSchema:
    """The composed form of `TrainConfig`; what is `Any` is built from its `_target_`."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    model: Any = MISSING
    tracking: Any = MISSING
    datasets: Any = MISSING
    held_out: Any = MISSING
    layers: Layers = MISSING
    paths: Paths = MISSING
    seed: int = 0
    device: str = "auto"
    progress: bool | None = None
    trusted_packages: list[str] = field(default_factory=list)
