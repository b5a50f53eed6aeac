"""Dataclass schema of `composition`: what is asked about layers further apart than neighbours. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CompositionConfig:
    """Composed against exactly solved permutations over growing distance, and features followed over the span."""

    max_distance: int = 0
    """Compare at distances 2..max_distance, as far as the span reaches (distance 1 is the matching itself); 0 = not
    at all. Every start and distance is one more assignment problem."""
    starts: list[int] = field(default_factory=list)
    """Layers to start from; empty = every layer of the span."""
    paths: bool = False
    """Write paths.parquet: every feature of the first layer followed through the span's matchings."""
