"""Weights & Biases: where a job's run goes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from sae_match.options import option


class TrackingMode(StrEnum):
    """Weights & Biases mode."""

    offline = "offline"
    online = "online"
    none = "none"


@option
class Tracking:
    """Weights & Biases."""

    mode: TrackingMode
    """offline | online | none."""
    project: str = "sae-match"
    """W&B project."""
    entity: str | None = None
    """W&B entity; null = the account's default."""
    group: str | None = None
    """Run group; null = the sweep's directory name, or none for a single run."""
    tags: list[Annotated[str, StringConstraints(min_length=1, max_length=64)]] = Field(default_factory=list)
    """Extra tags, at most 64 characters each."""
