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


class TrackingDetail(StrEnum):
    """How much of a record goes to W&B."""

    main = "main"
    full = "full"


@option
class Tracking:
    """Weights & Biases."""

    mode: TrackingMode
    """offline | online | none."""
    detail: TrackingDetail = TrackingDetail.main
    """main | full. main: summary columns and curves of what jobs are compared by, and the settings that decide results;
    the tables hold every number with its interval. full: every number, curve and key."""
    project: str | None = None
    """W&B project; null = WANDB_PROJECT, else sae-match."""
    entity: str | None = None
    """W&B entity; null = WANDB_ENTITY, else the account's default."""
    group: str | None = None
    """Run group; null = WANDB_RUN_GROUP, else the sweep's directory name, or none for a single run."""
    tags: list[Annotated[str, StringConstraints(min_length=1, max_length=64)]] = Field(default_factory=list)
    """Tags, at most 64 characters each; none = those of WANDB_TAGS."""

    @property
    def full(self) -> bool:
        """Whether every number, curve and key is sent."""
        return self.detail is TrackingDetail.full
