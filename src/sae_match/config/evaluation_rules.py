"""Rules of `capture` and `composition`, part of `check_config`. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator

from sae_match.config.composition_schema import CompositionConfig
from sae_match.config.schema import Config, LayersConfig


def capture_rules(cfg: Config) -> Iterator[str]:
    """What is captured covers the job's own span, and exists."""
    first, last, blocks = cfg.capture.first, cfg.capture.last, cfg.model.n_layers
    if first is not None and not 0 <= first <= cfg.layers.first:
        yield f"capture.first={first}: must be within 0..{cfg.layers.first} (layers.first)"
    if last is not None and last < cfg.layers.last:
        yield f"capture.last={last}: must be at least layers.last={cfg.layers.last}"
    if last is not None and blocks is not None and last >= blocks:
        yield f"capture.last={last}: {cfg.model.name} has blocks 0..{blocks - 1}"


def composition_rules(composition: CompositionConfig, layers: LayersConfig) -> Iterator[str]:
    """Distances that exist, and starts inside the span that something can be composed from."""
    distance = composition.max_distance
    if distance < 0 or distance == 1:
        yield f"composition.max_distance={distance}: must be 0 (off) or at least 2 (1 is the matching itself)"
    if distance >= 2 and layers.last - layers.first < 2:
        yield (
            f"composition.max_distance={distance}: layers.first={layers.first}, layers.last={layers.last} leaves "
            "nothing to compose; a span needs at least three layers"
        )
    if composition.starts and distance == 0:
        yield "composition.starts is set, but composition.max_distance=0 compares nothing"
    for start in composition.starts:
        if not layers.first <= start <= layers.last - 2:
            yield (
                f"composition.starts: nothing can be composed from layer {start}; layers.first={layers.first}, "
                f"layers.last={layers.last} allow {layers.first}..{layers.last - 2}"
            )
    if len(set(composition.starts)) < len(composition.starts):
        yield f"composition.starts={list(composition.starts)}: each layer once"
