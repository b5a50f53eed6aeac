"""One W&B run per trained layer: its loss curves while it trains, its held-out report as the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from sae_match.record.run_identity import run_id
from sae_match.store import Store
from sae_match.tracking import TrackingMode
from sae_match.tracking.wandb_mirror import WandbMirror, is_disabled
from sae_match.training.options import TrainConfig


@dataclass(frozen=True)
class LayerTracking:
    """Where one layer's training is tracked.

    Attributes:
        logger: Lightning logger for the curves, None without tracking.
        summary: takes the numbers of the held-out report.
    """

    logger: Logger | None
    summary: Callable[[Mapping[str, object]], None]


@contextmanager
def tracked(cfg: TrainConfig, layer: int, store: Store) -> Iterator[LayerTracking]:
    """A W&B run for one layer, closed whatever happens; nothing with tracking=none or WANDB_MODE=disabled."""
    if cfg.tracking.mode is TrackingMode.none or is_disabled():
        yield LayerTracking(None, lambda _: None)
        return
    config = cfg.config
    online = cfg.tracking.mode is TrackingMode.online
    mirror = WandbMirror(
        Path(cfg.paths.output_dir),
        mode="online" if online else "offline",
        config={**config, "layer": layer},
        cache_dir=store.scratch("wandb"),
        project=cfg.tracking.project,
        entity=cfg.tracking.entity,
        group=cfg.tracking.group,
        tags=cfg.tracking.tags,
        job_type="train",
        # A training goes on where it stopped, so its curves do. Offline each attempt is a run of its own: of two with
        # one id `wandb sync` would keep the later one's curves only.
        run_id=run_id({**config, "layer": layer}, Path(cfg.paths.output_dir)) if online else None,
        appends=True,
        name=f"train-{cfg.model.name}-layer-{layer}-seed-{cfg.seed}",
    )
    with mirror:
        yield LayerTracking(WandbLogger(experiment=mirror.run), lambda report: mirror.summary(_numbers(report)))


def _numbers(report: Mapping[str, object]) -> dict[str, object]:
    """The report without its texts (the model's name and the recipe, which the run's config holds)."""
    return {name: value for name, value in report.items() if not isinstance(value, (str, bool))}
